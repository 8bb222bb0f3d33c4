"""Compiles the runs of programs.py that FOLDER does not have yet, then prints the table and the verdict.

python -m stmoe.experiments.scaling_mesh.report FOLDER          virtual devices
python -m stmoe.experiments.scaling_mesh.report FOLDER v5p      needs the extra `aot`; many minutes
"""

import json
import pathlib
import sys

from stmoe import experiment
from stmoe.analysis import table
from stmoe.aot import topology
from stmoe.experiments.scaling_mesh import programs

TOLERANCE = 0.02


def compile_missing(folder, chip='cpu'):
  """Returns dict run name -> report of `aot.examine`; compiles and writes the reports that FOLDER lacks."""
  reports, most = {}, max(programs.CHIPS)
  topology.prepare(f'{chip}:{most}' if chip == 'cpu' else next(programs.runs(chip))[3])
  for name, config, overrides, where in programs.runs(chip):
    path = folder / f'{name.replace(", ", "_").replace(" ", "_")}.json'
    if not path.exists():
      from stmoe.aot import step as aot
      cfg, _ = experiment.load(config, overrides)
      chip, devices, _ = topology.devices(where)
      note = lambda text, name=name: print(f'{name}: {text}', file=sys.stderr, flush=True)
      path.write_text(json.dumps(aot.examine(cfg, chip, devices, note), indent=1) + '\n')
    reports[name] = json.loads(path.read_text())
  return reports


def spread(values):
  """Returns largest over smallest, less 1."""
  return max(values) / min(values) - 1


def lines(found):
  """Returns the table of the reports by run, and a line for each kind of run: are its FLOPs constant?"""
  mib = lambda size: f'{size / 2**20:,.0f}'
  cells = []
  for name, entry in found.items():
    step = entry['step']
    kinds = {kind: row['bytes'] for kind, row in step['collectives'].items()}
    moved = [mib(kinds.pop(kind, 0)) for kind in ('all-to-all', 'all-gather')] + [mib(sum(kinds.values()))]
    cells.append([name, f'{step["product_flops"] / 1e12:.4f}', mib(step['traffic_bytes']),
                  mib(step['memory']['peak']), *moved, mib(step['wire_bytes'])])
  head = ['of one chip, in a step', 'TFLOP', 'traffic MiB', 'memory MiB', 'all-to-all MiB', 'all-gather MiB',
          'others MiB', 'sent MiB']
  rows = table.plain(head, cells).splitlines()
  for label in programs.RULES:
    off = spread([entry['step']['product_flops'] for name, entry in found.items() if name.startswith(label)])
    verdict = 'holds' if off <= TOLERANCE else 'does not hold'
    rows.append(f'{label}: FLOPs of a chip differ by {off:.2%}: {verdict}')
  return rows


if __name__ == '__main__':
  where = pathlib.Path(sys.argv[1])
  where.mkdir(parents=True, exist_ok=True)
  print('\n'.join(lines(compile_missing(where, *sys.argv[2:]))))
