"""The reference: pages for the Python API, the core, every kind of module, all commands and fields."""

import argparse
import importlib

from stmoe import explained
from stmoe import lookup
from stmoe.cli import main
from stmoe.plugins import kinds
from stmoe.runs import directory

import methods
import repository

FIELDS_OF = ('lm/quickstart:method=switch', 'switch/base_c4')    # a decoder, and an encoder with its decoder
# What stands on the page of the Python API, and the names of each module, all by default.
PYTHON = {'stmoe.api': ('layer', 'open', 'train', 'Layer', 'Run'), 'stmoe.plugins': ('add',),
          'stmoe.core.contract': ()}
CORE = ('assignment', 'balance', 'bias', 'choices', 'gate', 'losses', 'matching', 'metrics', 'noise')


def pages():
  """Returns dict place in the site -> Markdown of a page; links are relative to a folder at the top."""
  return {'reference/README.md': _index(), 'reference/python.md': _python(), 'reference/core.md': _core(),
          'reference/commands.md': _commands(), 'reference/fields.md': _fields(),
          **{f'reference/{plural}.md': _kind(kind, plural) for kind, plural in kinds.PLURALS.items()}}


def _index():
  rows = [f'| [{plural}]({plural}.md) | `{kind}` | {len(_names(kind))} '
          f'| [{_folder(kind)}](../{_folder(kind)}) |' for kind, plural in kinds.PLURALS.items()]
  return '\n'.join([
      '# Reference', '',
      '- [Python](python.md): what `import stmoe` offers; the contract of routers, executors and layers.',
      '- [Core](core.md): edges, capacities, losses, metrics.',
      '- [Commands](commands.md): what `stmoe COMMAND --help` prints.',
      '- [Fields](fields.md): of a configuration, with types and defaults.', '',
      'A configuration names modules; the file name is the registry.', '',
      '| modules | key in a configuration | number | folder |', '|---|---|---|---|', *rows]) + '\n'


def _python():
  parts = ['# Python', 'Examples are in [From Python](../docs/python.md).']
  for module, names in PYTHON.items():
    parts.append(f'## {module}')
    parts += [f'::: {module}.{name}' for name in names] or [f'::: {module}']
  return '\n\n'.join(parts) + '\n'


def _core():
  own = [name for name in CORE if f'stmoe/core/{name}.py' not in methods.homes()]
  return '\n\n'.join(['# Core', *(f'::: stmoe.core.{name}' for name in own)]) + '\n'


def _folder(kind):
  """The folder of a kind; the file of functions that stand together."""
  return kinds.KINDS[kind].replace('.', '/') + ('.py' if kind in kinds.MODULES else '')


def _names(kind):
  return sorted({*lookup.available(kind), *lookup.wrappers(kind)} - {'wrappers'})


def _kind(kind, plural):
  """A table of all modules of a kind, and the docstrings of those that are on no method's page."""
  rows, rest = [], []
  for name in _names(kind):
    own = kind not in ('factorisation', 'adaptation')                # of the same folder as surgery
    file = _folder(kind) if kind in kinds.MODULES else f'{_folder(kind)}/{name}.py'
    if not (repository.ROOT / file).exists():
      file = f'{_folder(kind)}/wrappers/{name}.py'
    home = methods.homes().get(file)
    link = f'../docs/methods/{home}.md' if home else f'../{file}'
    rows.append(f'| [{name}]({link}) | {explained.line(kind, name)} |')
    if own and not home:
      rest.append(f'::: {file.removesuffix(".py").replace("/", ".")}')
  table = '\n'.join(['| name | |', '|---|---|', *rows])
  return '\n\n'.join([f'# {plural.capitalize()}', table, *dict.fromkeys(rest)]) + '\n'


def _commands():
  parts = ['# Commands', 'What `stmoe COMMAND --help` prints. Every command that trains or runs models also '
           'takes `--config.a.b=VALUE` and `--plugin FILE`.']
  for name in main.commands():
    if name == 'main':
      continue
    command = importlib.import_module(f'stmoe.cli.{name}')
    parser = main.Parser(prog=f'stmoe {name}', description=command.__doc__, allow_abbrev=False,
                         formatter_class=_Wide)
    command.add_arguments(parser)
    parts.append(f'## {name}\n\n~~~~~~text\n{parser.format_help().rstrip()}\n~~~~~~')
  return '\n\n'.join(parts) + '\n'


class _Wide(argparse.RawDescriptionHelpFormatter):
  """Help for a page, whatever the width of the terminal that builds it."""

  def __init__(self, prog):
    super().__init__(prog, width=110)


def _fields():
  parts = ['# Fields', 'What `stmoe show NAME --fields` prints of two experiments. The fields of other '
           'modules are on their pages.']
  for name in FIELDS_OF:
    config, _ = directory.named(name, [])
    lines = '\n'.join(explained.lines(config, 110))
    parts.append(f'## {name}\n\n~~~~~~text\n{lines}\n~~~~~~')
  return '\n\n'.join(parts) + '\n'
