"""The ancestry of a run as text: which runs it was made of, how, and how those were made."""

from collections.abc import Iterator
import pathlib

from stmoe.runs import records


def lines(path: str | pathlib.Path) -> Iterator[str]:
  """Yields lines of text about the ancestry of run directory `path`, none of a run trained from nothing."""
  lineage = records.ancestry(path).get('lineage')
  if lineage:
    yield from _lines(lineage, 0, '')


def _lines(lineage, number, indent):
  made = lineage[number]
  options = ', '.join(f'{key}={value}' for key, value in made['options'].items())
  yield f'{indent}made by {made["method"]}{f" ({options})" if options else ""} of'
  for known in made['parents']:
    step = '' if known['step'] is None else f', step {known["step"]:,}'
    digests = ', '.join(f'{what} {known[what][:8]}' for what in ('config', 'checkpoint') if known[what])
    yield f'{indent}  {known["run"]}{step}{f" ({digests})" if digests else ""}'
    if known['made'] is None:
      yield f'{indent}    {"made elsewhere" if known["step"] is None else "trained from nothing"}'
    else:
      yield from _lines(lineage, known['made'], indent + '    ')
