"""Routes through layers of several modules, found by trying all of them (Duo-LLM, arXiv:2410.10846).

A route has a module for every layer: 0 = big, 1 = small, 2 = skip. Its cost is its number m of big layers. An
oracle gives each token the route of least loss; it sees the next token, so its loss is a bound, no result.
"""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np

BIG, SMALL = 0, 1


class Best(NamedTuple):
  """What an oracle finds for T tokens at every budget m = 0 to L; all arrays [L+1,T] but `big_share`.

  exact:      i[L+1,T], the number of the best route with exactly m big layers, the first of equal ones.
  loss_exact: its loss.
  loss_at_most: of the best route with at most m.
  big_share:  [L+1,L], share of tokens whose best route with exactly m has the big module in layer l.
  difficulty: what compute gains: the loss with all layers small, minus `loss_at_most`.
  """
  exact: np.ndarray
  loss_exact: np.ndarray
  loss_at_most: np.ndarray
  big_share: np.ndarray
  difficulty: np.ndarray


def routes(layers: int, ways: int) -> np.ndarray:
  """Returns i[ways^L,L], all routes in lexicographic order.

  >>> routes(2, 2).tolist()
  [[0, 0], [0, 1], [1, 0], [1, 1]]
  """
  return np.array(list(itertools.product(range(ways), repeat=layers)), np.int32)


def best(loss: np.ndarray, every: np.ndarray) -> Best:
  """Returns the Best of loss [T,R], the loss of each token by each of R routes, every i[R,L].

  >>> found = best(np.array([[3.0, 1.0, 2.0, 4.0]]), routes(2, 2))
  >>> found.exact.ravel().tolist(), found.loss_at_most.ravel().tolist(), found.difficulty.ravel().tolist()
  ([3, 1, 0], [4.0, 1.0, 1.0], [0.0, 3.0, 3.0])
  """
  of_budget = _of_budgets(every)
  exact = np.stack([of[np.argmin(loss[:, of], axis=1)] for of in of_budget])       # [L+1, T]
  loss_exact = np.take_along_axis(loss.T, exact, axis=0)
  at_most = np.minimum.accumulate(loss_exact, axis=0)
  small = np.flatnonzero((every == SMALL).all(axis=1))[0]
  return Best(exact.astype(np.int32), loss_exact, at_most, np.mean(every[exact] == BIG, axis=1),
              loss[:, small] - at_most)


def of_the_token_before(tables: Sequence[np.ndarray], every: np.ndarray) -> np.ndarray:
  """Returns f[L+1], the mean loss by the route that was best for the token before, with exactly m big layers.

  An oracle takes the least of many losses, which is low by chance already. What a route is worth shows at the
  next token, which did not choose it. First tokens do not count; NaN without any other.

  Args:
    tables: of each text the losses [T,R] of its tokens, in order; every: i[R,L], all routes.

  >>> table = np.array([[3.0, 1.0, 2.0, 4.0], [6.0, 5.0, 0.0, 7.0]])
  >>> best(table, routes(2, 2)).loss_exact[:, 1].tolist(), of_the_token_before([table], routes(2, 2)).tolist()
  ([7.0, 0.0, 6.0], [7.0, 5.0, 6.0])
  """
  found = []
  for of in _of_budgets(every):
    chosen = [of[np.argmin(table[:-1, of], axis=1)] for table in tables]
    found.append(np.concatenate([np.take_along_axis(table[1:], at[:, None], axis=1)[:, 0]
                                 for table, at in zip(tables, chosen)]))
  return np.array([losses.mean() if len(losses) else np.nan for losses in found])


def _of_budgets(every):
  """For every m = 0 to L the numbers of the routes, i[R,L], with m big layers."""
  number = np.sum(every == BIG, axis=1)
  return [np.flatnonzero(number == m) for m in range(every.shape[1] + 1)]
