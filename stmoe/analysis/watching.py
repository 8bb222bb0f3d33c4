"""What `stmoe watch` shows of a run: a Snapshot of its newest numbers, and the panel that draws the Snapshot.

Only files are read, so a run on another machine is watched through its directory.
"""

import dataclasses
import datetime
import math
import pathlib
import time

import numpy as np

from stmoe.runs import directory
from stmoe.runs import read
from stmoe.runs import records

BLOCKS = '▁▂▃▄▅▆▇█'
STALLED = 300                            # seconds without a new line, after which a run may have stopped
WIDE = 40                                # characters of a sparkline
OVERLOADED, RARE = 2.0, 0.1              # times the even share, from which a bar is red, and below which dim


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A run at a moment.

  state:   'finished', 'training', 'starting', or 'quiet for 7 min'.
  steps:   planned.
  step:    of the newest line of metrics.jsonl, 0 without any.
  losses:  f64[n] of the training loss, NaN where a line has none.
  values:  the newest value of every metric.
  rates:   tokens per second and active FLOP/s between the last two lines that tell; None where unknown.
  left:    seconds of training that are left, None where unknown.
  loads:   dict layer -> f32[E], the newest share of every expert; an even share is 1.
  devices: (kind of device, number of devices), None where the run does not say.
  """
  name: str
  state: str
  steps: int
  step: int
  losses: np.ndarray
  values: dict
  rates: tuple[float | None, float | None]
  left: float | None
  loads: dict[str, np.ndarray]
  devices: tuple[str, int] | None


def snapshot(path: str | pathlib.Path, now: float | None = None) -> Snapshot:
  """Returns the Snapshot of run directory `path`; UserError where none is.

  now: seconds as of time.time(), by which a run is quiet; None = now.
  """
  path = pathlib.Path(path)
  config, lines = directory.whole(path), read.read_lines(path)
  values = {key: value for line in lines for key, value in line.items() if value is not None}
  steps, step, done = config['train']['steps'], values.get('step', 0), records.done(path)
  loads = {layer: load / max(load.mean(), 1e-9) for layer, load in records.newest_loads(path).items()}
  devices = records.environment(path).get('devices', {})
  known = {'kind', 'mesh'} <= devices.keys()
  tokens, flops, seconds = _rates(lines)
  return Snapshot(
      path.resolve().name, 'finished' if done else _state(path, lines, time.time() if now is None else now),
      steps, step, np.array([line.get('loss/ce', line.get('loss/total', np.nan)) for line in lines], float),
      values, (tokens, flops), None if done or seconds is None else seconds * (steps - step), loads,
      (devices['kind'], math.prod(devices['mesh'].values())) if known else None)


def _state(path, lines, now):
  """'starting' without lines; 'quiet for ...' where the newest line is old."""
  if not lines:
    return 'starting'
  quiet = now - (path / 'metrics.jsonl').stat().st_mtime
  return 'training' if quiet < STALLED else f'quiet for {quiet / 60:,.0f} min'


def _rates(lines):
  """(tokens/s, FLOP/s, seconds a step) between the last two lines of training; None for what is not known."""
  told = [line for line in lines if {'tokens', 'flops', 'time'} <= line.keys()][-2:]
  if len(told) < 2 or told[1]['time'] <= told[0]['time']:
    return None, None, None
  tokens, flops, seconds, steps = (told[1][key] - told[0][key] for key in ('tokens', 'flops', 'time', 'step'))
  return tokens / seconds or None, flops / seconds or None, seconds / steps if steps else None


def sparkline(values: np.ndarray) -> str:
  """Returns at most WIDE blocks, low to high, of the means of as many stretches of `values`.

  >>> sparkline(np.array([3.0, 2.0, np.nan, 1.0]))
  '█▄▁'
  """
  values = values[np.isfinite(values)]
  if not len(values):
    return ''
  means = np.array([part.mean() for part in np.array_split(values, min(WIDE, len(values)))])
  span = means.max() - means.min()
  heights = (means - means.min()) / (span or 1) * (len(BLOCKS) - 1)
  return ''.join(BLOCKS[int(height)] for height in heights)


def bars(load: np.ndarray) -> list[tuple[str, str]]:
  """Returns (block, colour) of every expert: a full block has OVERLOADED times the even share or more.

  load: f32[E], in even shares.

  >>> bars(np.array([1.0, 2.5, 0.0]))
  [('▄', 'green'), ('█', 'red'), ('·', 'dim')]
  """
  top = len(BLOCKS) - 1
  block = lambda share: '·' if share <= 0 else BLOCKS[min(top, int(share / OVERLOADED * top))]
  colour = lambda share: 'red' if share >= OVERLOADED else 'dim' if share < RARE else 'green'
  return [(block(share), colour(share)) for share in load.tolist()]


def rows(shot: Snapshot, peak: float | None) -> list[tuple[str, str]]:
  """Returns (what, value) of the numbers of a Snapshot that are known.

  peak: FLOP/s of all devices of the run, None where unknown.
  """
  values, (tokens, flops) = shot.values, shot.rates
  loss = values.get('loss/ce', values.get('loss/total'))
  named = [('loss', loss, '{:.4f}'), ('eval loss', values.get('eval/loss'), '{:.4f}'),
           ('bits per byte', values.get('eval/bits_per_byte'), '{:.4f}'),
           ('drops', values.get('moe/drop_frac'), '{:.1%}'),
           ('max load', values.get('moe/max_load_ratio'), '{:.2f}'),
           ('skipped', values.get('skipped') or None, '{}'), ('tokens/s', tokens, '{:,.0f}'),
           ('GFLOP/s', flops and flops / 1e9, '{:,.1f}'),
           ('utilisation', flops and peak and flops / peak, '{:.1%}'),
           ('host memory', values.get('host_memory_gib'), '{:.2f} GiB'),
           ('device memory', values.get('device_memory_gib'), '{:.2f} GiB')]
  return [(name, form.format(value)) for name, value, form in named if value is not None]


def of_parts(values: dict) -> list[tuple[str, str, str]]:
  """Returns a heading and (part of the model, gradient norm, update ratio) of every part; [] if none is told.

  values: the newest value of every metric.

  >>> of_parts({'parts/router/grad_norm': 0.25, 'parts/router/update_ratio': 0.00102})
  [('', 'gradient', 'update'), ('router', '0.25', '0.00102')]
  """
  names = sorted({name.split('/')[1] for name in values if name.startswith('parts/')})
  text = lambda name, what: f'{values.get(f"parts/{name}/{what}", math.nan):.3g}'
  found = [(name, text(name, 'grad_norm'), text(name, 'update_ratio')) for name in names]
  return [('', 'gradient', 'update'), *found] if found else []


def panel(shot: Snapshot, peak: float | None = None):
  """Returns the rich Panel of a Snapshot; `peak` as in `rows`."""
  from rich import console
  from rich import panel as panels
  from rich import progress_bar
  from rich import table
  from rich import text
  head = text.Text(f'{shot.step:,}/{shot.steps:,} steps')
  if shot.left:
    head.append(f', {datetime.timedelta(seconds=round(shot.left))} left')
  numbers = table.Table.grid(padding=(0, 2))
  for name, value in rows(shot, peak):
    numbers.add_row(text.Text(name, style='dim'), text.Text(value, justify='right'))
  by_part = table.Table.grid(padding=(0, 2))
  for part, gradient, update in of_parts(shot.values):
    by_part.add_row(text.Text(part, style='dim'), text.Text(gradient, justify='right'),
                    text.Text(update, justify='right'))
  loads = table.Table.grid(padding=(0, 1))
  for layer, load in shot.loads.items():
    loads.add_row(text.Text(layer, style='dim'), text.Text.assemble(*bars(load)),
                  text.Text(f'max {load.max():.2f}', style='dim'))
  colour = {'finished': 'green', 'training': 'cyan', 'starting': 'cyan'}.get(shot.state, 'yellow')
  parts: list = [head, progress_bar.ProgressBar(shot.steps, shot.step, width=WIDE), text.Text(),
                 text.Text(sparkline(shot.losses), style='cyan'), numbers, by_part, loads]
  return panels.Panel(console.Group(*parts), title=text.Text(f'{shot.name}: {shot.state}', style=colour),
                      border_style=colour, expand=False)
