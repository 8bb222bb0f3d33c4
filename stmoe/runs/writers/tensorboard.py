"""TensorBoard's files in the folder `tensorboard` of a run: curves, loads of experts, hyperparameters."""

import pathlib
import time

import numpy as np

from stmoe.runs import records

PACKAGE = 'tensorboardX'
WIDEST = 200                             # steps of a picture


class Tensorboard:
  """Writes with tensorboardX. A continued run takes back what was written after its checkpoint, or not noted.

  The files are written here and now: tensorboardX's own SummaryWriter hands events to a thread, and its flush
  does not wait for that thread.
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    from tensorboardX import summary     # takes a second to import
    self.id, self._path, self._config, self._make = '', path, config, summary
    older = holds < 0 and any(path.glob('tensorboard/events*'))       # of a stmoe that kept no writers.json
    self.holds = step if older else max(min(holds, step), 0)          # 0: the next start sees no older stmoe
    # The suffix: two files begun in one second are two files.
    self._file = _File(path / 'tensorboard', f'.{step:012}')
    self._file.take_back(self.holds + 1)

  def write(self, step: int, values: dict, loads: dict) -> None:
    """Adds a point to every curve, and a histogram of every layer: a bar is the share of an expert."""
    bars = [self._bars(f'load/{layer}', np.asarray(shares, np.float64)) for layer, shares in loads.items()]
    self._file.add([self._make.scalar(name, value) for name, value in values.items()] + bars, step)

  def _bars(self, tag, shares):
    shares, experts = np.nan_to_num(shares), np.arange(len(shares))
    return self._make.histogram_raw(
        tag, min=0, max=len(shares) - 1, num=len(shares), sum=float(experts @ shares),
        sum_squares=float(experts ** 2 @ shares), bucket_limits=(experts + 0.5).tolist(),
        bucket_counts=shares.tolist())

  def finish(self, final: dict) -> None:
    """Adds the hyperparameters with the last metrics, and a picture of the loads of every layer."""
    fields = {field: value if isinstance(value, (bool, int, float, str)) else str(value)
              for field, value in self._config.items()}
    metrics = {name: value for name, value in final.items() if name != 'step'}
    session = _File(self._path / 'tensorboard' / 'hparams')
    session.add(self._make.hparams(fields, metrics), None)
    session.add([self._make.scalar(name, value) for name, value in metrics.items()], final['step'])
    session.close()
    self._file.add([self._make.image(f'load_by_step/{layer}', _picture(rows))
                    for layer, rows in _by_layer(self._path).items()], final['step'])

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class _File:
  """A file of events in `folder`, on the disk when `add` returns: so a killed run has sent what it says."""

  def __init__(self, folder, suffix=''):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2
    folder.mkdir(parents=True, exist_ok=True)
    self._event = event_pb2
    self._events = event_file_writer.EventsWriter(str(folder / 'events'), suffix)

  def take_back(self, step):
    """Tells readers that all they read of step `step` and later is void."""
    start = self._event.SessionLog(status=self._event.SessionLog.START)
    self._events.write_event(self._event.Event(wall_time=time.time(), step=step, session_log=start))
    self._events.flush()

  def add(self, summaries, step):
    """Adds tensorboardX's summaries, an event each."""
    for each in summaries:
      self._events.write_event(self._event.Event(wall_time=time.time(), step=step, summary=each))
    self._events.flush()

  def close(self):
    self._events.close()


def _by_layer(path):
  """Dict layer -> list over steps of its loads f32[E], of run directory `path`."""
  rows: dict = {}
  for _, loads, _ in records.stats(path):
    for layer, load in loads.items():
      rows.setdefault(layer, []).append(load)
  return rows


def _picture(rows):
  """uint8[1,8E,8S] of loads f32[S,E]: a step a column, an expert a line; white is the largest load."""
  steps = np.linspace(0, len(rows) - 1, min(len(rows), WIDEST)).round().astype(int)
  shares = np.nan_to_num(np.transpose([rows[step] for step in steps]))             # [E,S]
  grey = np.uint8(255 * shares / max(shares.max(), 1e-9))
  return np.kron(grey, np.ones((8, 8), np.uint8))[None]
