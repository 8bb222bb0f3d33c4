"""What the losses of a run are: the measures of its configuration's target, with their units."""

from stmoe import lookup


def of(run):
  """Returns dict name of a metric -> `targets.Measure` of a Run."""
  return lookup.recipe('target', run.config.get('loss', {}))().measures


def first(run, part):
  """Returns the name of the metric in `part` that is the loss: 'loss/' of training, 'eval/' of validation."""
  return next(name for name in of(run) if name.startswith(part))


def unit(runs):
  """Returns the unit of the validation loss of Runs; '' where the units differ."""
  units = {of(run)['eval/loss'].unit for run in runs}
  return units.pop() if len(units) == 1 else ''
