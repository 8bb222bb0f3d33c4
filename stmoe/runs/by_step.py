"""What a run writes by step: router_stats/<step>.npz and shown/<step>.npz.

router_stats has the share of tokens of every expert, and what routers remember. shown has what figures show
of an evaluation.
"""

import io
import itertools
import pathlib

import numpy as np

from stmoe import files
from stmoe.runs import records


def write_router_stats(path, step, load, states):
  """Writes router_stats/<step>.npz: moe_load f32[L,E] and the names of the L layers.

  Rows of layers with fewer experts end in NaN. The routers' state (`stmoe.router_state.vectors`) stands
  beside the loads, f32[E] or f32[] under state/<layer>/<path in the layer>.
  """
  folder = pathlib.Path(path) / 'router_stats'
  folder.mkdir(exist_ok=True)
  width = max(len(row) for row in load.values())
  rows = [np.pad(np.float32(row), (0, width - len(row)), constant_values=np.nan) for row in load.values()]
  state_arrays = {f'state/{layer}/{name}': np.float32(v) for layer, values in states.items()
                  for name, v in values.items()}
  content = io.BytesIO()
  np.savez(content, moe_load=np.stack(rows), layers=np.array(list(load)), **state_arrays)
  files.write_bytes(folder / f'{step}.npz', content.getvalue())


def write_shown(path, step, arrays):
  """Writes shown/<step>.npz, dict name -> array: what the target of a run has for figures."""
  folder, content = pathlib.Path(path) / records.SHOWN, io.BytesIO()
  folder.mkdir(exist_ok=True)
  np.savez(content, **{name: np.float32(array) for name, array in arrays.items()})
  files.write_bytes(folder / f'{step}.npz', content.getvalue())


def drop_later(path, step):
  """Removes router_stats and what is shown of steps after `step`, and what a kill left half written."""
  folders = [pathlib.Path(path) / name for name in ('router_stats', records.SHOWN)]
  for file in itertools.chain(*(folder.glob('*') for folder in folders)):
    later = file.suffix == '.npz' and file.stem.isdecimal() and int(file.stem) > step
    if later or file.suffix == '.tmp' or file.name.endswith('.tmp.npz'):
      file.unlink()
