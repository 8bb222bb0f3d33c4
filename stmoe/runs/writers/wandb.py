"""Weights & Biases, online or, with WANDB_MODE=offline, in the folder `wandb` of a run."""

import os
import pathlib

PACKAGE = 'wandb'


class Wandb:
  """Writes with wandb. A continued run continues the curves of the run with the same id.

  Project, entity and mode are those of the environment: WANDB_PROJECT (default 'stmoe'), WANDB_ENTITY,
  WANDB_MODE.
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import wandb
    self.holds, self._wandb = holds, wandb
    self.id = id or os.urandom(4).hex()
    project, settings = os.environ.get('WANDB_PROJECT', 'stmoe'), wandb.Settings(console='off', silent=True)
    self._run = wandb.init(project=project, dir=str(path), id=self.id, name=name, resume='allow',
                           config=config, settings=settings)
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, values: dict) -> None:
    """Logs a line; its step is the value `step`, too."""
    self._run.log(values | dict(step=step))

  def loads(self, step: int, load: dict) -> None:
    """Logs a histogram of every layer: a bar an expert."""
    bars = {f'load/{layer}': self._wandb.Histogram(
        np_histogram=(shares, [expert - 0.5 for expert in range(len(shares) + 1)]))
        for layer, shares in load.items()}
    self._run.log(bars | dict(step=step))

  def finish(self, final: dict) -> None:
    """Puts the last values into the summary."""
    self._run.summary.update(final)

  def close(self) -> None:
    """Waits until all is written."""
    self._run.finish()
