"""Does a claim hold? A rule for two groups of seeds, stated beside its answer.

The effect is the difference of the means, counted in the direction of the claim, with a t interval of 95 %.
Where both groups have the same seeds (which share data order and initialisation), the interval is of the
paired differences, else Welch's. A claim of a size also has to reach that size:

holds           the interval lies above zero, and does not lie below the claimed size
does not hold   the interval lies below zero, or below the claimed size
not decided     it contains zero (and the claimed size, where there is one); or there are too few seeds
"""

import dataclasses
import math

import numpy as np

from stmoe import errors

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'not decided'
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The answer to a claim.

  effect, low, high: the difference in the claim's direction and its interval; NaN with too few seeds.
  spread: standard deviation of the differences (paired), or of a seed (Welch: of both groups, pooled).
  seeds:  of the two groups.
  rule:   in words.
  """
  claim: str
  answer: str
  effect: float
  low: float
  high: float
  spread: float
  seeds: tuple
  rule: str

  def __str__(self):
    if math.isnan(self.effect):
      return f'{self.answer}: {self.claim}\n  {self.rule}'
    n = '/'.join(map(str, dict.fromkeys(self.seeds)))
    return (f'{self.answer}: {self.claim}\n  effect {self.effect:+.4g}, 95 % interval {self.low:+.4g} to '
            f'{self.high:+.4g}, spread {self.spread:.2g}, {n} seeds ({self.rule})')


def exceeds(claim, treated, control, size=0.0, better='lower'):
  """Returns the Verdict on the claim that `treated` is better than `control`, by about `size` or more.

  Args:
    claim:   in words.
    treated: dict seed -> value (None: not finite), or a list of values of unrelated seeds.
    control: the same.
    size:    the claimed difference, not negative; 0.0 = only its direction is claimed.
    better:  'lower' for losses, 'higher' for accuracies.
  """
  if size < 0 or better not in ('lower', 'higher'):
    raise errors.UserError(f'verdict: size={size}, better={better!r}; give a size of at least 0, and '
                           'lower or higher')
  sign = 1.0 if better == 'higher' else -1.0
  effect, half, spread, seeds, kind = interval(treated, control)
  effect *= sign
  low, high = effect - half, effect + half
  claimed = f', claimed {size:+.4g}' if size else ''
  return Verdict(claim, decide(low, high, size), effect, low, high, spread, seeds, f'{kind}{claimed}')


def alike(claim, first, second, margin):
  """Returns the Verdict on the claim that two groups differ by less than `margin`, either way.

  The claim holds if the interval lies within -margin and margin, fails if it lies outside, and is open else.
  """
  effect, half, spread, seeds, kind = interval(first, second)
  low, high = effect - half, effect + half
  answer = HOLDS if -margin < low and high < margin else FAILS if low > margin or high < -margin else OPEN
  return Verdict(claim, answer, effect, low, high, spread, seeds, f'{kind}, within {margin:.4g}')


def decide(low, high, size=0.0):
  """Returns the answer for the interval (low, high) of an effect claimed to be `size`; see the rule above.

  >>> decide(0.1, 0.3), decide(-0.1, 0.3), decide(0.1, 0.3, size=1.0), decide(-0.3, -0.1)
  ('holds', 'not decided', 'does not hold', 'does not hold')
  """
  if high < max(size, 0.0):
    return FAILS
  return HOLDS if low > 0 else OPEN


def interval(first, second):
  """Returns (mean difference first - second, half width of its interval, spread, seeds, kind in words).

  With fewer than two seeds in a group the width is NaN, which decides nothing. All is NaN where a group
  is empty or a value is not finite (a run that diverged has no loss to average).
  """
  paired = isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys()
  pairs = [(first[seed], second[seed]) for seed in first] if paired else []
  a, b = (np.array(list(g.values() if isinstance(g, dict) else g), np.float64) for g in (first, second))
  seeds, kind = (len(a), len(b)), 'paired t' if paired else "Welch's t"
  if not len(a) or not len(b):
    return math.nan, math.nan, math.nan, seeds, 'a group has no runs yet'
  bad = int(np.sum(~np.isfinite([*a, *b])))
  if bad:
    return math.nan, math.nan, math.nan, seeds, f'{bad} run(s) without a finite value'
  difference = float(a.mean() - b.mean())
  if min(len(a), len(b)) < 2:
    return difference, math.nan, math.nan, seeds, f'{kind}; needs two seeds'
  if paired:
    spread, freedom = float(np.std([x - y for x, y in pairs], ddof=1)), len(pairs) - 1
    error = spread / math.sqrt(len(pairs))
  else:
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error, spread = math.sqrt(va + vb), math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    parts = va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1)
    freedom = (va + vb) ** 2 / parts if parts else len(a) + len(b) - 2
  from scipy import stats
  return difference, float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error, spread, seeds, kind
