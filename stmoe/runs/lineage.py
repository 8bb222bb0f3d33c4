"""The ancestry of a run as text: which runs it was made of, how, and how those runs were made."""

from collections.abc import Iterator
import pathlib

from stmoe.runs import records


def lines(path: str | pathlib.Path) -> Iterator[str]:
  """Yields lines of text about the ancestry of run directory `path`; none if it was trained from nothing."""
  lineage = records.ancestry(path).get('lineage')
  if lineage:
    yield from _lines(lineage, 0, '')


def _lines(lineage, number, indent):
  entry = lineage[number]
  options = ', '.join(f'{key}={value}' for key, value in entry['options'].items())
  yield f'{indent}made by {entry["method"]}{f" ({options})" if options else ""} of'
  for parent in entry['parents']:
    step = '' if parent['step'] is None else f', step {parent["step"]:,}'
    digests = ', '.join(f'{what} {parent[what][:8]}' for what in ('config', 'checkpoint') if parent[what])
    yield f'{indent}  {parent["run"]}{step}{f" ({digests})" if digests else ""}'
    if parent['made'] is None:
      yield f'{indent}    {"made elsewhere" if parent["step"] is None else "trained from nothing"}'
    else:
      yield from _lines(lineage, parent['made'], indent + '    ')
