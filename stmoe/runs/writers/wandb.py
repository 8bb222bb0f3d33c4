"""Weights & Biases, online or, with WANDB_MODE=offline, in the folder `wandb` of a run."""

import os
import pathlib
import shutil

PACKAGE = 'wandb'


class Wandb:
  """Writes with wandb. A continued run continues the curves of the run with the same id.

  Project, entity and mode are those of the environment: WANDB_PROJECT (default 'stmoe'), WANDB_ENTITY,
  WANDB_MODE. wandb's own step is the step of the training.

  wandb writes in the background, and a kill loses what was not written yet. Offline, a run that continues
  deletes the folders of its earlier processes, and sends all steps to a new one. That one is to be
  synchronised, once the run is finished. Online, the server is asked for its last step, and later ones are
  sent. No test here has a server. What a killed process had under way may still arrive after that answer, and
  then is there twice. A kill while the run is created may leave an empty one beside it.
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import wandb
    self._wandb = wandb
    self.id = id or os.urandom(4).hex()
    for folder in path.glob('wandb/offline-run-*'):          # of another id: killed before the id was noted
      shutil.rmtree(folder)
    project, settings = os.environ.get('WANDB_PROJECT', 'stmoe'), wandb.Settings(console='off', silent=True)
    self._run = wandb.init(project=project, dir=str(path), id=self.id, name=name, resume='allow',
                           config=config, settings=settings)
    self._run.define_metric('*', step_metric='step')
    self.holds = self._run.starting_step - 1       # the server's last step; -1 offline

  def write(self, step: int, values: dict, loads: dict) -> None:
    """Logs a line with a histogram of every layer: a bar an expert. The step is the value `step`, too."""
    bars = {f'load/{layer}': self._wandb.Histogram(
        np_histogram=(shares, [expert - 0.5 for expert in range(len(shares) + 1)]))
        for layer, shares in loads.items()}
    self._run.log(values | bars | dict(step=step), step=step, commit=True)

  def finish(self, final: dict) -> None:
    """Puts the last values into the summary."""
    self._run.summary.update(final)

  def close(self) -> None:
    """Waits until all is written."""
    self._run.finish()
