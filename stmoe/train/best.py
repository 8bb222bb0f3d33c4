"""The best checkpoint of a run by a score of its evaluations, kept beside the newest ones."""

import pathlib

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checkpoint
from stmoe.hosts import job
from stmoe.runs import records


class Best:
  """The checkpoint of the best evaluation until now, in `best/` of the run directory.

  checkpoint.best names the score, 'boolq/accuracy@rank', of which more is better, or 'eval/loss', of which
  less is; '' keeps none.
  """

  def __init__(self, cfg, path, names):
    self.name, self._cfg, self._path = cfg.checkpoint.get('best', ''), cfg, pathlib.Path(path)
    known = [*names, 'eval/loss']
    if self.name and self.name not in known:
      raise errors.UserError(f'checkpoint.best={self.name!r}: there is no such score'
                             f'{errors.nearest(self.name, known)} (there are: {", ".join(known)})')
    self._found = records.best(path)

  def improves(self, step, values):
    """Returns whether `values` have a better score than every earlier step had."""
    value = values.get(self.name)
    if value is None or self._found['step'] >= step:
      return False
    return self._found['value'] is None or self._sign() * value > self._sign() * self._found['value']

  def _sign(self):
    return -1 if self.name == 'eval/loss' else 1

  def save(self, step, values, state, position, meta):
    """Keeps this state instead of the best one before."""
    self._found = dict(step=step, name=self.name, value=float(values[self.name]))
    saved = checkpoint.Checkpoints(self._path / 'best', 1, 1, async_save=False)
    saved.save(step, state, position, meta | dict(seconds=0.0))
    saved.close()
    if job.leads():
      files.write_json(self._path / 'best.json', self._found)

  def describe(self):
    """Returns the best score as a line."""
    return f'best {self.name} until now: {self._found["value"]:.4g}, of step {self._found["step"]:,}; kept'
