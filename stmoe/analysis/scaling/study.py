"""From a table of runs to what is known of a law: coefficients, intervals, the error on held-out runs."""

from typing import NamedTuple

import numpy as np

from stmoe import errors
from stmoe.analysis.scaling import fit as fits

LEVEL = 0.95
PERCENTILES = (2.5, 10, 50, 90, 97.5)
LEAST = 40            # bootstrap fits: one is to lie beyond each end of the interval


class HeldOut(NamedTuple):
  """The largest runs, predicted by a fit to all other runs.

  rows:      bool[R] which runs were held out.
  fit:       Fit to the other runs.
  predicted: f64[H] of the rows held out, in the table's order.
  interval:  f64[2, H] bootstrap interval of the law at these runs; None without a bootstrap.
  error:     f64[H] predicted over measured, less 1.
  """
  rows: np.ndarray
  fit: fits.Fit
  predicted: np.ndarray
  interval: np.ndarray | None
  error: np.ndarray


class Study(NamedTuple):
  """A law and what runs say about it.

  name, law: of the law.
  table:     dict column -> f64[R].
  fit:       Fit to all runs.
  samples:   dict coefficient -> f64[B], of bootstrap fits; {} without.
  held_out:  HeldOut, or None.
  advice:    lines on what the runs leave open.
  settings:  dict of what was asked for: fixed, bootstrap, hold_out, seed.
  headings:  dict column -> what the user's table calls it, where that is another word.
  """
  name: str
  law: object
  table: dict
  fit: fits.Fit
  samples: dict
  held_out: HeldOut | None
  advice: list
  settings: dict
  headings: dict

  @property
  def derived(self):
    """Dict name -> float of what follows from the coefficients."""
    return {k: float(v) for k, v in self.law.derived(self.fit.coefficients).items()}

  @property
  def intervals(self):
    """Dict name -> f64[5] at PERCENTILES, of the fitted coefficients and of what follows from them."""
    if not self.samples:
      return {}
    values = {name: self.samples[name] for name in self.fit.free}
    values |= {k: np.broadcast_to(v, self.samples[self.fit.free[0]].shape)
               for k, v in self.law.derived(self.samples).items()}
    return {name: percentiles(v) for name, v in values.items()}


def study(name, law, table, hold_out=0, bootstrap=200, fixed=(), seed=0, headings=()):
  """Returns the Study of `law` on `table`.

  Args:
    name:      of the law.
    law:       its module.
    table:     dict column -> f64[R], with 'loss'.
    hold_out:  how many of the largest configurations are predicted from the rest, with all their seeds.
    bootstrap: how many fits to resampled residuals; 0 for no intervals.
    fixed:     dict coefficient -> value.
    seed:      of the bootstrap and of the starting values.
    headings:  see `Study`.
  Raises UserError: see `fit.fit`; more configurations to hold out than can be spared.
  """
  fixed = dict(fixed)
  held = held_out(law, table, hold_out, bootstrap, fixed, seed) if hold_out else None
  fitted = fits.fit(law, table, fixed, seed)
  samples = resample(law, table, fitted, fixed, bootstrap, seed) if bootstrap else {}
  lines = [line for line in law.advice(table) if line.partition(' ')[0] not in fixed]
  lines += [f'{name} ended at its bound: these runs do not determine it' for name in fitted.at_bound]
  settings = dict(fixed=fixed, hold_out=hold_out, bootstrap=bootstrap, seed=seed)
  return Study(name, law, table, fitted, samples, held, lines, settings, dict(headings))


def resample(law, table, found, fixed, count, seed):
  """Returns dict coefficient -> f64[count]: fits to the law plus residuals drawn with replacement.

  Residuals are centred and scaled by sqrt(R / (R - P)) for the freedom that the fit took from them. The
  runs themselves stay, so that a sweep over a few sizes keeps all of them. Errors are taken to be alike.
  """
  random = np.random.default_rng(seed)
  size, free = len(found.residuals), len(found.free)
  errors_ = (found.residuals - found.residuals.mean()) * np.sqrt(size / max(size - free, 1))
  predicted = law.predict(found.coefficients, table)
  thetas = []
  for _ in range(count):
    drawn = dict(table, loss=predicted * np.exp(random.choice(errors_, size)))
    thetas.append(fits.Problem(law, drawn, fixed).descend(found.theta, tolerance=1e-8)[1])
  problem = fits.Problem(law, table, fixed)
  values = problem.coefficients(np.array(thetas))
  return {name: np.broadcast_to(value, (count, 1))[:, 0] for name, value in values.items()}


def percentiles(values):
  """Returns f64[5] at PERCENTILES of values f64[B]; infinite where values are."""
  return np.percentile(values, PERCENTILES, method='inverted_cdf')


def largest(law, table, count):
  """Returns bool[R]: all runs of the `count` largest configurations."""
  labels, sizes = fits.configurations(law, table), law.size(table)
  order = sorted(set(labels), key=lambda label: sizes[labels == label].max())
  return np.isin(labels, order[-count:])


def held_out(law, table, count, bootstrap, fixed, seed):
  """Returns the HeldOut of the `count` largest configurations."""
  different, least = len(set(fits.configurations(law, table))), fits.needed(law, fixed)
  if different - count < least:
    raise errors.UserError(f'to hold out {count}, the law needs {least + count} different runs, {least} of '
                           f'them for its {least - 1} coefficients; here are {different}')
  rows = largest(law, table, count)
  other_runs, largest_runs = ({c: v[keep] for c, v in table.items()} for keep in (~rows, rows))
  fitted = fits.fit(law, other_runs, fixed, seed)
  predicted = law.predict(fitted.coefficients, largest_runs)
  interval = None
  if bootstrap:
    samples = resample(law, other_runs, fitted, fixed, bootstrap, seed)
    spread = law.predict({k: v[:, None] for k, v in samples.items()}, largest_runs)  # [B, H]
    tail = 50 * (1 - LEVEL)
    interval = np.percentile(spread, [tail, 100 - tail], axis=0)
  return HeldOut(rows, fitted, predicted, interval, predicted / largest_runs['loss'] - 1)
