"""The best model for a budget of training compute, by a fitted law."""

from typing import NamedTuple

import numpy as np
from scipy import optimize

SMALLEST, LARGEST = 1e2, 1e16         # model sizes that are searched


class Point(NamedTuple):
  """A model size, the tokens that the budget leaves for that size, and the predicted loss."""
  n: float
  tokens: float
  loss: float


def iso_flop(law, coefficients, budget, held, n):
  """Returns (tokens, loss), each f64[S], of models of size n f64[S] that spend `budget` training FLOPs.

  Args:
    law:          module with SIZE and flops_per_token.
    coefficients: dict name -> float.
    budget:       FLOPs.
    held:         dict column -> value of the columns HELD.
  """
  n = np.asarray(n, float)
  tokens = budget / law.flops_per_token(n, held)
  table = {law.SIZE: n, 'tokens': tokens, **{c: np.full_like(n, v) for c, v in held.items()}}
  return tokens, law.predict(coefficients, table)


def best(law, coefficients, budget, held):
  """Returns the Point of least predicted loss for `budget` FLOPs: a bounded search over ln n."""
  loss = lambda log_n: iso_flop(law, coefficients, budget, held, [np.exp(log_n)])[1][0]
  minimum = optimize.minimize_scalar(loss, bounds=(np.log(SMALLEST), np.log(LARGEST)), method='bounded',
                                     options=dict(xatol=1e-8))
  n = float(np.exp(minimum.x))
  tokens, value = iso_flop(law, coefficients, budget, held, [n])
  return Point(n, float(tokens[0]), float(value[0]))


def budgets(law, table):
  """Returns f64[R]: the training FLOPs of the runs of a table."""
  held = {column: table[column] for column in law.HELD}
  return law.flops_per_token(table[law.SIZE], held) * table['tokens']


def settings(law, table, most=None):
  """Returns the list of dicts of the columns HELD that occur in a table, sorted; at most `most`, spread."""
  rows = sorted(set(zip(*(table[column] for column in law.HELD)))) if law.HELD else [()]
  if most and len(rows) > most:
    rows = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
  return [dict(zip(law.HELD, map(float, row))) for row in rows]


def name(held):
  """Returns 'experts 8' or 'granularity 4, expansion 64'; '' for nothing held."""
  return ', '.join(f'{column} {value:g}' for column, value in held.items())
