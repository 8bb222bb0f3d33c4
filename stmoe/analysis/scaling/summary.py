"""What a study found, as lines for a terminal and as plain data for a file."""

import numpy as np

from stmoe.analysis import table as tables
from stmoe.analysis.scaling import fit as fits
from stmoe.analysis.scaling import study as studies


def lines(study, most_published=3):
  """Returns the summary as a list of lines: coefficients, what follows from them, held-out error, advice.

  Args:
    study:          Study.
    most_published: how many sets of published coefficients stand beside.
  """
  fit, size = study.fit, len(study.table['loss'])
  several = len(set(fits.configurations(study.law, study.table)))
  text = [f'{study.name} ({study.law.SOURCE}): {study.law.FORMULA}',
           f'{size} runs, {several} different; {len(fit.free)} coefficients fitted; '
           f'typical error of the fit {fit.rms:.2%} of the loss', '']
  text += _coefficients(study, list(study.law.PUBLISHED)[:most_published]).splitlines() + ['']
  text += _held_out(study)
  return text + [f'note: {line}' for line in study.advice]


def _coefficients(study, published):
  """The table of coefficients, intervals and published values."""
  intervals, rows = study.intervals, []
  values = {**study.fit.coefficients, **study.derived}
  for name, value in values.items():
    interval = intervals.get(name)
    span = '–' if interval is None else f'{interval[0]:.4g} to {interval[-1]:.4g}'
    published_values = [study.law.PUBLISHED[label].get(name) for label in published]
    rows.append([name, f'{value:.4g}', 'held fixed' if name in study.settings['fixed'] else span,
                 *('–' if other is None else f'{other:.4g}' for other in published_values)])
  return tables.plain(['coefficient', 'value', f'{studies.LEVEL:.0%} interval', *published], rows)


def _held_out(study):
  held = study.held_out
  if held is None:
    return ['no run was held out: --hold-out 1 tells how well the law predicts a larger one']
  rms = float(np.sqrt(np.mean(np.log1p(held.error) ** 2)))
  text = [f'held out, the largest runs, predicted from the other {int((~held.rows).sum())}: '
           f'error {rms:.2%} of the loss']
  for i, row in enumerate(np.flatnonzero(held.rows)):
    where = ', '.join(f'{column} {study.table[column][row]:.4g}' for column in study.law.COLUMNS)
    span = '' if held.interval is None else f' ({held.interval[0, i]:.4f} to {held.interval[1, i]:.4f})'
    text.append(f'  {where}: predicted {held.predicted[i]:.4f}{span}, measured '
                 f'{study.table["loss"][row]:.4f}, {held.error[i]:+.2%}')
  return text


def content(study):
  """Returns the study as a dict of numbers, texts and lists, at full precision; infinities are None."""
  percent = [f'{p:g}' for p in studies.PERCENTILES]
  held = study.held_out
  return dict(
      law=study.name, source=study.law.SOURCE, formula=study.law.FORMULA, settings=study.settings,
      runs=len(study.table['loss']), coefficients=study.fit.coefficients, derived=_finite(study.derived),
      percentiles={name: dict(zip(percent, _finite(list(map(float, values)))))
                   for name, values in study.intervals.items()},
      rms_log_error=study.fit.rms, advice=study.advice,
      held_out=None if held is None else dict(
          coefficients=held.fit.coefficients,
          runs=[dict({c: float(v[row]) for c, v in study.table.items()}, predicted=float(held.predicted[i]),
                     interval=None if held.interval is None else held.interval[:, i].tolist(),
                     error=float(held.error[i]))
                for i, row in enumerate(np.flatnonzero(held.rows))]))


def _finite(values):
  """A dict or list of floats, with None for floats that JSON has no word for."""
  if isinstance(values, dict):
    return dict(zip(values, _finite(list(values.values()))))
  return [value if np.isfinite(value) else None for value in values]
