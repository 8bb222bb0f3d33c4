"""The command `stmoe`: finds the sub-command, hands over its arguments, turns mistakes into one line.

A sub-command is a file of this folder with `add_arguments(parser)` and `run(args)`; the first line of its
docstring is its help. Only the file of the command that was asked for is imported. It imports heavy
libraries inside `run`, so that `stmoe --help` answers at once. COMPUTES = True says that the command trains
or runs models, and TRAINS = True that the command takes training steps.
"""

import argparse
import ast
import atexit
import difflib
import gc
import importlib
import os
import pathlib
import re
import sys

import stmoe
from stmoe import errors
from stmoe import plugins
from stmoe.hosts import job

LIKE = 0.7                           # of difflib: an option that is meant by a misspelt one
INTERRUPTED = 130                    # what shells report for a command ended by Ctrl-C
COMPUTES = '\nCOMPUTES = True\n'        # stands in the files of commands that train or run models
TRAINS = '\nTRAINS = True\n'            # in those, of commands that take the same step again and again
# Of the C library: large pages; one heap for all threads, no piece beside it, its end never given back.
PAGES, KEPT = dict(hugetlb=1), dict(arena_max=1, mmap_max=0, trim_threshold=2**64 - 1)


class Parser(argparse.ArgumentParser):
  """An argument parser whose complaints are UserErrors: one line instead of the whole usage."""

  def error(self, message):
    if ': expected ' in message:       # of a range: '--step -1: expected ...'
      message = re.sub(r'^argument (\S+): ', r'\1 ', message)
    raise errors.UserError(f'{message}; see {self.prog} --help')


def commands():
  """Returns dict sub-command -> first line of its docstring, read without importing the sub-command."""
  docstring = lambda path: ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
  return {name: docstring(path).partition('\n')[0] for name, path in _files().items()}


def _files():
  """Returns dict sub-command -> its file."""
  own = pathlib.Path(__file__)
  return {path.stem: path for path in sorted(own.parent.glob('*.py'))
          if path.stem not in ('__init__', own.stem)}


def computes(name, fact=COMPUTES):
  """Returns whether `fact` is true of a sub-command, read without importing the sub-command."""
  file = pathlib.Path(__file__).with_name(f'{name}.py') if name.isidentifier() else None
  return file is not None and file.is_file() and fact in file.read_text(encoding='utf-8')


def main(argv=None):
  """Returns the exit code of `stmoe ARGV`: 0, 2 for a mistake of the user, 130 after Ctrl-C.

  75 means that another process of the same job is gone.
  """
  if argv is None:
    gc.set_threshold(10_000, 10, 10)   # imports make many objects that stay: Python looks less often, 0.2 s
    atexit.register(gc.freeze)         # Python would look twice through all objects, which go anyway: 0.4 s
  if argv is None and sys.argv[1:2] and computes(sys.argv[1]):
    _with_memory(PAGES | (KEPT if computes(sys.argv[1], TRAINS) else {}))
  argv = list(sys.argv[1:] if argv is None else argv)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):   # what the terminal has no letter for is written as \x..
      stream.reconfigure(errors='backslashreplace')
  try:
    code = _run(plugged([word for word in argv if word != '--debug']))
    sys.stdout.flush()
    return job.leave(code or 0)
  except BrokenPipeError:            # the reader of a pipe, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except BaseException as error:
    if job.lost(error) and '--debug' not in argv:
      job.stop(error)
    message, code = _explain(error)
    if message is None or '--debug' in argv:
      raise
  print(f'stmoe: {message}', file=sys.stderr)
  return job.leave(code, job.LEAVE if code == 2 else 0)


def _with_memory(settings):
  """Starts this command again with `settings` of memory, which only the start of a process can ask for.

  A training step on CPU allocates its temporaries anew and touches some 100,000 fresh small pages. With
  large pages the step is a tenth faster. Where freed memory stays in the process, nobody clears pages for
  the next step. That saves another twentieth, and a small training holds up to twice the memory.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    words = [f'glibc.malloc.{name}={value}' for name, value in settings.items()]
    os.environ['GLIBC_TUNABLES'] = ':'.join(words)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _explain(error):
  """(line, exit code) of an error that needs no traceback, else (None, None)."""
  if isinstance(error, errors.UserError):
    return ' '.join(str(error).split()), 2
  if isinstance(error, KeyboardInterrupt):
    return 'interrupted', INTERRUPTED
  from stmoe import files            # with numpy, which `stmoe --help` does not wait for
  if cause := files.full(error):
    return f'no space left on device: {" ".join(str(cause).split())}', 2
  if errors.of_memory(error):
    return (f'out of memory: {" ".join(str(error).split())[:120]}; nearest: a smaller train.batch_size, or '
            'more train.microbatches; stmoe compile says what a step needs'), 2
  if isinstance(error, OSError) and error.filename is not None and error.strerror:
    return f'{error.filename}: {error.strerror}', 2                  # what the system refuses of a file
  if isinstance(error, Exception) and (blamed := plugins.blamed(error)):
    return blamed, 2
  return None, None


def _run(argv):
  if argv[:1] == ['--version']:
    print(f'stmoe {stmoe.__version__}')
    return 0
  if argv[:1] == ['help'] and argv[1:]:
    argv = [*argv[1:], '--help']
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(_overview())
    return 0
  name, available = argv[0], _files()
  if name not in available:
    raise errors.UserError(f'no command is called {name!r}{errors.nearest(name, available)}'
                           f' (there are: {", ".join(available)})')
  command = importlib.import_module(f'stmoe.cli.{name}')
  parser = Parser(prog=f'stmoe {name}', description=command.__doc__, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
  command.add_arguments(parser)
  words, overrides = split_overrides(argv[1:])
  if hasattr(command, 'help_of') and {'-h', '--help'} & set(words):
    print(parser.format_help())
    print('\n'.join(command.help_of([*words, *overrides])))
    return 0
  _misspelt(words, parser)
  args, unknown = parser.parse_known_args(words)
  if unknown:
    _field(unknown, parser)
    parser.error(f'unrecognized arguments: {" ".join(unknown)}{_elsewhere(unknown, parser)}')
  if overrides and not hasattr(args, 'overrides'):
    raise errors.UserError(f'stmoe {name} takes no {overrides[0]}; see stmoe {name} --help')
  if overrides:
    args.overrides = overrides
  if hasattr(args, 'coordinator'):
    code = job.enter(args)
    if code is not None:
      return code
  elif computes(name):
    job.alone(name)
  return command.run(args)


def _misspelt(words, parser):
  """Raises UserError for an option among `words` that `parser` does not have, before it misses any other."""
  options = [option for action in parser._actions for option in action.option_strings]
  for word in words[:words.index('--')] if '--' in words else words:
    option = word.partition('=')[0]
    if word.startswith('--') and option not in options:
      _field([word], parser)
      near = _near([name for name in options if name not in ('-h', '--help')], option, parser)
      parser.error(f'{parser.prog} knows no {option}; nearest: {near}' if near else
                   f'unrecognized arguments: {word}{_elsewhere([word], parser)}')


def _near(options, option, parser):
  """What is most like an unknown option: one of `options`, or a field of a configuration; '' = nothing is."""
  plain = lambda typed: typed.removeprefix('--').replace('-', '_')
  kinds = [{plain(typed): typed for typed in options}]
  if _has_fields(parser):
    from stmoe import experiment         # with ml_collections, which `stmoe --help` does not wait for
    kinds.append({key: f'--config.{field}' for key, field in experiment.known_words().items()})
  for known in kinds:
    for key in difflib.get_close_matches(plain(option), known, n=1, cutoff=LIKE):
      return known[key]
  return ''


def _has_fields(parser):
  """Whether a command takes fields of a configuration."""
  return parser.get_default('overrides') is not None


def _field(words, parser):
  """Raises UserError for a field among unknown words that lacks its --config, or is one of gin."""
  for word in words:
    if word.startswith('--gin'):
      raise errors.UserError(f'{word}: gin is not read; fields are --config.FIELD=VALUE, as '
                             'stmoe show NAME --fields explains them (from gin: docs/from_t5x.md)')
    field = re.fullmatch(r'(?:--)?(?:config\.)?([a-z_]+(?:\.\w+)+)(=.*)?', word, re.DOTALL)
    if not field or not (word.startswith('--') or field[2]):
      continue
    from stmoe import sections           # with ml_collections, which `stmoe --help` does not wait for
    if field[1].partition('.')[0] in sections.SECTIONS:
      raise errors.UserError(f'{parser.prog} knows no {word}; nearest: --config.{field[1]}{field[2] or ""}')


def _elsewhere(words, parser):
  """'; ...', where unknown words may belong, of a command that takes fields of a configuration; else ''."""
  if not _has_fields(parser):
    return ''
  if words[0].startswith('-'):
    return '; fields of the configuration are --config.FIELD=VALUE'
  return f'; arguments of an experiment follow its name and a colon, NAME:{",".join(words)}'


def _overview():
  width = max(map(len, commands()))
  lines = [f'  {name:{width}}  {line}' for name, line in commands().items()]
  return '\n'.join(['usage: stmoe COMMAND ...', '', *lines, '',
                    'stmoe COMMAND --help explains a command; --debug shows tracebacks of mistakes.',
                    '--plugin FILE adds a file of your own: a router, experts, a layer, a metric, ...',
                    'Plugins and configurations are code, and run: read those that you did not write.'])


def plugged(words):
  """Returns `words` without every --plugin FILE, once its file is added to the plugins."""
  words, others = list(words), []
  while words:
    word, equals, file = words.pop(0).partition('=')
    if word != '--plugin':
      others.append(word + equals + file)
      continue
    if not equals and not words:
      raise errors.UserError('--plugin needs a file: --plugin FILE.py')
    plugins.add(file if equals else words.pop(0))
  return others


def split_overrides(words):
  """Returns (the other words, the overrides); '--config.a.b', 'value' is one override."""
  words, other_words, overrides = list(words), [], []
  while words:
    word = words.pop(0)
    if not word.startswith('--config.'):
      other_words.append(word)
    elif '=' in word or not words:
      overrides.append(word)
    else:
      overrides.append(f'{word}={words.pop(0)}')
  return other_words, overrides


if __name__ == '__main__':
  sys.exit(main())
