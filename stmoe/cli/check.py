"""Runs the contract and conformance tests on a router, experts, an executor, a layer, a target or tasks.

stmoe check my_router.py                          a file of your own, anywhere; its code runs
stmoe check my_router.py:hidden=8,k=1             with fields of its constructor
stmoe check switch                                what the project holds, by its name

A line says for each test whether it passed, and what is wrong. The exit code is 1 if any fails. A plugin is
code: check no file that you did not read.
"""

import os

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import plugins
from stmoe import value_ranges

COMPUTES = True
KINDS = ', '.join(plugins.KINDS)


def add_arguments(parser):
  parser.add_argument('name', metavar='FILE|NAME',
                      help='a .py file, or a name; fields after a colon: FILE:field=value,...')
  parser.add_argument('--kind', choices=list(plugins.KINDS), help='of a name that several kinds have')


def run(args):
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  kind, name, fields = _named(args.name, args.kind)
  from stmoe import conform
  from stmoe.conform import execution
  count = len(conform.checks(kind))
  file = lookup.module(kind, name).__file__
  print(f'{kind} {name}: {file} ({count} checks, in about a minute)', flush=True)
  with execution.small_blocks():
    failed = conform.failures(kind, name, fields, _sayer())
  print(f'{count - failed} of {count} passed' + (f', {failed} failed' if failed else ''))
  return 1 if failed else 0


def _named(text, kind):
  """(kind, name, fields) of FILE:fields or NAME:fields."""
  where, listing = experiment.split(text)
  if where.endswith('.py'):
    plugin = plugins.add(where)
    kind, name = plugin.kind, plugin.name
  else:
    kind, name = kind or _kind_of(where), where
    lookup.check(kind, name)
  return kind, name, _fields(kind, name, listing)


def _kind_of(name):
  """The kind of a name that one kind alone has."""
  kinds = [kind for kind in plugins.KINDS if lookup.has(kind, name)]
  if len(kinds) == 1:
    return kinds[0]
  if kinds:
    raise errors.UserError(f'{name} is {" and ".join(kinds)}; nearest: --kind {kinds[0]}')
  every = [other for kind in plugins.KINDS for other in lookup.available(kind)]
  raise errors.UserError(f'no {KINDS} is called {value_ranges.shown(name)}{errors.nearest(name, every)}; '
                         'a file of your own ends in .py')


def _fields(kind, name, listing):
  """Fields 'k=2,hidden=8' as their ranges read them."""
  if kind in ('executor', 'tasks'):
    if listing:
      raise errors.UserError(f'stmoe check {name}:{listing}: {kind} takes no fields here')
    return {}
  return lookup.spelled(kind, f'{name}:{listing}')[1]


def _sayer():
  """A function (title, what is wrong or None) that prints a line, and no fault twice."""
  said = set()

  def say(title, wrong):
    line = f'{"ok    " if wrong is None else "FAILED"}  {title}'
    if wrong:
      line += '\n        the same as above' if wrong in said else f'\n        {wrong}'
      said.add(wrong)
    print(line, flush=True)
  return say
