"""Runs the contract and conformance tests on a router, experts, an executor, a layer, a metric, ...

stmoe check my_router.py                          a file of your own, anywhere; its code runs
stmoe check my_router.py:hidden=8,k=1             with fields of its constructor
stmoe check switch                                what the project holds, by its name

A line says for each test whether it passed, and what is wrong. The exit code is 1 if any fails. A file of
several kinds is checked as each. A plugin is code: check no file that you did not read.
"""

import os

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import plugins
from stmoe import value_ranges
from stmoe.plugins import kinds

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('name', metavar='FILE|NAME',
                      help='a .py file, or a name; fields after a colon: FILE:field=value,...')
  parser.add_argument('--kind', choices=list(kinds.KINDS), help='of a name that several kinds have')


def run(args):
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  held, name, listing = _named(args.name, args.kind)
  each = _fields(held, name, listing)
  from stmoe.conform import execution
  with execution.small_blocks():
    failed = sum(_check(kind, name, fields) for kind, fields in each.items())
  return 1 if failed else 0


def _check(kind, name, fields):
  """Prints what the checks of a kind say of a file; returns how many failed."""
  from stmoe import conform
  count = len(conform.checks(kind))
  file = plugins.files(kinds.KINDS[kind]).get(name) or lookup.module(kind, name).__file__
  if not count:
    lookup.module(kind, name)            # its code runs
    print(f'{kind} {name}: {file} can be read (a {kind} has no shared checks)')
    return 0
  print(f'{kind} {name}: {file} ({count} checks, in about a minute)', flush=True)
  failed = conform.failures(kind, name, fields, _sayer())
  print(f'{count - failed} of {count} passed' + (f', {failed} failed' if failed else ''))
  return failed


def _named(text, kind):
  """(kinds, name, listing) of FILE:listing or NAME:listing."""
  where, listing = experiment.split(text)
  if where.endswith('.py'):
    plugin = plugins.add(where)
    held, name = [each for each in plugin.kinds if kind in (None, each)], plugin.name
    if not held:
      raise errors.UserError(f'{where} holds {plugin.holds}; nearest: --kind {plugin.kinds[0]}')
  else:
    held, name = [kind or _kind_of(where)], where
    lookup.check(held[0], name)
  return held, name, listing


def _kind_of(name):
  """The kind of a name that one kind alone has."""
  having = [kind for kind in kinds.KINDS if lookup.has(kind, name)]
  if len(having) == 1:
    return having[0]
  if having:
    raise errors.UserError(f'{name} is {" and ".join(having)}; nearest: --kind {having[0]}')
  every = [other for kind in kinds.KINDS for other in lookup.available(kind)]
  raise errors.UserError(f'nothing is called {value_ranges.shown(name)}{errors.nearest(name, every)}; '
                         'a file of your own ends in .py')


def _fields(held, name, listing):
  """Dict kind -> fields 'k=2,hidden=8' as their ranges read them; at most one kind of a file has any."""
  from stmoe import conform
  own = lambda kind: (lookup.options if kind in lookup.FUNCTIONS else lookup.fields)(kind, name)
  taking = [kind for kind in held if listing and conform.takes_fields(kind) and own(kind)]
  if listing and not taking:
    raise errors.UserError(f'stmoe check {name}:{listing}: {" and ".join(held)} takes no fields here')
  if len(taking) > 1:
    raise errors.UserError(f'stmoe check {name}:{listing}: fields of which kind? nearest: --kind {taking[0]}')
  return {kind: lookup.spelled(kind, f'{name}:{listing}')[1] if kind in taking else {} for kind in held}


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
