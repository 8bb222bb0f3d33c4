"""The ancestry of a run as text: which runs it was made of, how, and how those runs were made."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
import shlex
import sys

from stmoe.runs import records


def lines(path: str | pathlib.Path, called: Callable[[str], str] = str) -> Iterator[str]:
  """Yields lines of text about the ancestry of run directory `path`; none if it was trained from nothing.

  called: (path of a run) -> what it is called.
  """
  lineage = records.ancestry(path).get('lineage')
  if lineage:
    yield from _lines(lineage, 0, '', called)


def _lines(lineage, number, indent, called):
  entry = lineage[number]
  options = ', '.join(f'{key}={value}' for key, value in entry['options'].items())
  yield f'{indent}made by {entry["method"]}{f" ({options})" if options else ""} of'
  for parent in entry['parents']:
    step = '' if parent['step'] is None else f', step {parent["step"]:,}'
    digests = ', '.join(f'{what} {parent[what][:8]}' for what in ('config', 'checkpoint') if parent[what])
    yield f'{indent}  {called(parent["run"])}{step}{f" ({digests})" if digests else ""}'
    if parent['made'] is None:
      yield f'{indent}    {"made elsewhere" if parent["step"] is None else "trained from nothing"}'
    else:
      yield from _lines(lineage, parent['made'], indent + '    ', called)


def command(words: Sequence[str] | None = None) -> str | None:
  """Returns a command line of `stmoe` as it is typed; None for another program, such as a notebook.

  words: of the line, the program first; None = those of this process.
  """
  program, *words = sys.argv if words is None else words or ['']
  path = pathlib.PurePath(program)
  if path.name != 'stmoe' and path.parts[-3:] != ('stmoe', 'cli', 'main.py'):
    return None
  return shlex.join(['stmoe', *(word.encode(errors='replace').decode() for word in words)])


def commands(path: str | pathlib.Path) -> list[str]:
  """Returns the command lines by which run directory `path` and its ancestors came about, the oldest first.

  Of runs that were made by other programs, or before such lines were kept, there is none.
  """
  entries = records.ancestry(path).get('lineage', [])
  lines = [line for entry in reversed(entries)
           for line in (*(parent.get('command') for parent in entry['parents']), entry.get('command'))]
  lines.append(command(records.environment(path).get('command') or ()))
  return list(dict.fromkeys(line for line in lines if line))
