"""The best checkpoint of a run by a score of its evaluations, kept beside the newest checkpoints."""

import pathlib

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checkpoint
from stmoe.hosts import job
from stmoe.runs import records


class Best:
  """The checkpoint of the best evaluation until now, in `best/` of the run directory.

  checkpoint.best names the score. It is a task's, 'boolq/accuracy@rank', of which more is better, or an
  'eval/...' of the target, which says what is better; '' keeps no checkpoint.

  names: of the scores of tasks; measures: those of `evaluate.measured`.
  """

  def __init__(self, cfg, path, names, measures):
    self.name, self._path = cfg.checkpoint.get('best', ''), pathlib.Path(path)
    better = {name: measure.better for name, measure in measures.items() if name.startswith('eval/')}
    scores = [*names, *better]
    if self.name and self.name not in scores:
      raise errors.UserError(f'checkpoint.best={self.name!r}: there is no such score'
                             f'{errors.nearest(self.name, scores)} (there are: {", ".join(scores)})')
    self._sign = -1 if better.get(self.name) == 'lower' else 1
    found = records.best(path)           # of an earlier command, which may have named another score
    self._found = found if found['name'] == self.name else records.NO_BEST

  def improves(self, step, values):
    """Returns whether `values` have a better score than every earlier step had."""
    value = values.get(self.name)
    if value is None and self.name.startswith('eval/') and 'eval/loss' in values:
      evaluated = [name for name in values if name.startswith('eval/')]
      raise errors.UserError(f'checkpoint.best={self.name!r}: the evaluation of these data has no such '
                             f'number (it has: {", ".join(evaluated)})')
    if value is None or self._found['step'] >= step:
      return False
    return self._found['value'] is None or self._sign * value > self._sign * self._found['value']

  def save(self, step, values, state, position, meta):
    """Keeps this state in place of the best state before."""
    self._found = dict(step=step, name=self.name, value=float(values[self.name]))
    saved = checkpoint.Checkpoints(self._path / 'best', 1, 1, async_save=False)
    saved.take_back(step)                # what a kill left of steps that were done again
    saved.save(step, state, position, meta | dict(seconds=0.0))
    saved.close()
    if job.leads():
      files.write_json(self._path / 'best.json', self._found)

  def describe(self):
    """Returns the best score as a line."""
    return f'best {self.name} until now: {self._found["value"]:.4g}, of step {self._found["step"]:,}; kept'
