"""TensorBoard's files in the folder `tensorboard` of a run: curves, loads of experts, hyperparameters."""

import pathlib

import numpy as np

from stmoe.runs import records

PACKAGE = 'tensorboardX'
WIDEST = 200                             # steps of a picture


class Tensorboard:
  """Writes with tensorboardX. A continued run takes back what was written after its checkpoint."""

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import tensorboardX                  # takes a second to import
    self.id, self._path, self._config = '', path, config
    older = holds < 0 and any(path.glob('tensorboard/events*'))       # of a stmoe that kept no writers.json
    self.holds = step if older else min(holds, step)
    # The suffix: two files begun in one second are two files.
    self._board = tensorboardX.SummaryWriter(str(path / 'tensorboard'), purge_step=step + 1,
                                             filename_suffix=f'.{step:012}')

  def write(self, step: int, values: dict) -> None:
    """Adds a point to every curve."""
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()                  # a killed run has sent what writers.json says

  def loads(self, step: int, load: dict) -> None:
    """Adds a histogram of every layer: a bar an expert, as high as its share of the tokens."""
    for layer, shares in load.items():
      shares = np.nan_to_num(np.asarray(shares, np.float64))
      experts = np.arange(len(shares))
      self._board.add_histogram_raw(
          f'load/{layer}', min=0, max=len(shares) - 1, num=len(shares), sum=float(experts @ shares),
          sum_squares=float(experts ** 2 @ shares), bucket_limits=(experts + 0.5).tolist(),
          bucket_counts=shares.tolist(), global_step=step)

  def finish(self, final: dict) -> None:
    """Adds the hyperparameters with the last metrics, and a picture of the loads of every layer."""
    fields = {field: value if isinstance(value, (bool, int, float, str)) else str(value)
              for field, value in self._config.items()}
    self._board.add_hparams(fields, {name: value for name, value in final.items() if name != 'step'},
                            name='hparams', global_step=final['step'])
    for layer, rows in _by_layer(self._path).items():
      self._board.add_image(f'load_by_step/{layer}', _picture(rows), final['step'])

  def close(self) -> None:
    """Flushes and closes the file."""
    self._board.close()


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
