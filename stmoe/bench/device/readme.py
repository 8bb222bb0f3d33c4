"""The page of what the kit measured: DIR/README.md, and the table of tiles that kernels read."""

import json
import pathlib
import re

from pallas_kernels import tuning as tables_of_tiles
from stmoe import files
from stmoe import lookup
from stmoe.bench.device import pending
from stmoe.bench.device import measured
from stmoe.bench.device.pieces import tuning

COMMAND = 'python -m stmoe.bench.device --budget 480 --out DIR'


def write(folder):
  """Writes README.md into `folder`, and the table of tiles where some were timed; returns the paths."""
  found = measured.Measured(folder)
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  paths = [pathlib.Path(folder) / 'README.md']
  files.write_text(paths[0], text(found) + '\n')
  tiles = [row for name, record in found.records.items() if pending.piece(name) == 'tuning'
           for row in tuning.tiled(record)]
  if tiles:
    paths.append(pathlib.Path(folder) / f'{tables_of_tiles.file(found.machine["device"])}.json')
    head = dict(device=found.machine['device'], jax=found.machine['versions']['jax'], commands=[COMMAND])
    rows = ',\n'.join(map(json.dumps, tiles))
    files.write_text(paths[1], f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n')
  return paths


def text(found):
  """Returns the page of a `Measured` as Markdown."""
  parts = ['# Measured on one accelerator', _machine(found.machine), f'```sh\n{COMMAND}\n```']
  for name in sorted(lookup.available('piece'), key=lambda name: lookup.module('piece', name).WORTH):
    piece = lookup.module('piece', name)
    mine = {key: record for key, record in found.records.items() if pending.piece(key) == name}
    parts += [f'## {name.capitalize()}', _about(piece), piece.table(mine), *_undone(mine)]
  return '\n\n'.join(parts)


def _machine(machine):
  if not machine:
    return 'Nothing was measured yet. On a machine with one GPU, this command does:'
  versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
  memory = f', {machine["memory_gb"]} GB of it for JAX' if machine.get('memory_gb') else ''
  return f'Measured on **{machine["device"]}**{memory}, {machine["cpus"]} CPU cores; {versions}.'


def _about(piece):
  """The first paragraph of the piece's docstring, a line."""
  return ' '.join((piece.__doc__ or '').split('\n\n')[0].split())


def _undone(records):
  """A list of what failed or was stopped."""
  lines = [f'- {name}: {record["state"]}{re.sub("^(?=.)", ", ", record.get("error", ""))}'
           for name, record in records.items() if record['state'] != 'done']
  return ['\n'.join(lines)] if lines else []
