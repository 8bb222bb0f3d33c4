"""What recorded choices say of a router: numbers of one layer, of two layers, and of two checkpoints.

The formulas are those of LibMoE (TMLR 2026) and of the analyses that it collects, where its text and its code
agree. I_t are the experts of token t, w_t their weights, without sign, divided by their sum, k = |I_t|, E the
number of experts. All means are over tokens; a token that no expert took counts where sets are compared only.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Routes:
  """The choices of one sparse layer for n tokens.

  experts: i32[n,K], largest weight first; -1 where a token has fewer than K.
  weights: f64[n,K], 0 there; without the sign that TC-MoE's have.
  num_experts: E, with virtual experts.
  """
  experts: np.ndarray
  weights: np.ndarray
  num_experts: int

  def of(self, tokens: np.ndarray) -> 'Routes':
    """Returns the Routes of some tokens, bool[n] or numbers i[m]."""
    return Routes(self.experts[tokens], self.weights[tokens], self.num_experts)

  @property
  def taken(self) -> np.ndarray:
    """bool[n,E]: which experts a token has."""
    member = np.zeros((len(self.experts), self.num_experts + 1), bool)
    np.put_along_axis(member, self.experts, True, axis=1)            # -1 is the last column
    return member[:, :-1]

  @property
  def shares(self) -> np.ndarray:
    """f64[n,K]: weights divided by their sum over a token's experts."""
    total = self.weights.sum(1, keepdims=True)
    return self.weights / np.where(total > 0, total, 1)


def routes(token: np.ndarray, expert: np.ndarray, weight: np.ndarray, number: np.ndarray, mask: np.ndarray,
           num_experts: int) -> Routes:
  """Returns the Routes of the real tokens of a batch, in order.

  Args:
    token, expert: i32[G,N]; weight: f32[G,N]. Experts >= num_experts are dead edges.
    number: i32[G,S], which of the B*T tokens the tokens of groups are; mask: bool[B,T] real tokens.
  """
  place = np.take_along_axis(number, token, axis=1).ravel()          # [G*N] in [0, B*T)
  expert, weight = expert.ravel(), np.abs(np.float64(weight)).ravel()
  live = (expert < num_experts) & mask.ravel()[place]
  place, expert, weight = place[live], expert[live], weight[live]
  order = np.lexsort((-weight, place))
  place, expert, weight = place[order], expert[order], weight[order]
  rank = np.arange(len(place)) - np.searchsorted(place, place)       # of an edge among those of its token
  most = int(rank.max(initial=0)) + 1
  experts, weights = np.full((mask.size, most), -1, np.int32), np.zeros((mask.size, most))
  experts[place, rank], weights[place, rank] = expert, weight
  return Routes(experts[mask.ravel()], weights[mask.ravel()], num_experts)


def joined(parts: Sequence[Routes]) -> Routes:
  """Returns the Routes of all tokens of `parts`, one after the other."""
  most = max(part.experts.shape[1] for part in parts)
  wide = lambda a, fill: np.pad(a, ((0, 0), (0, most - a.shape[1])), constant_values=fill)
  return Routes(np.concatenate([wide(part.experts, -1) for part in parts]),
                np.concatenate([wide(part.weights, 0) for part in parts]), parts[0].num_experts)


# Of one layer.

def load(found: Routes) -> np.ndarray:
  """Returns f64[E]: each expert's share of all choices."""
  counts = np.bincount(found.experts[found.experts >= 0], minlength=found.num_experts)
  return counts / np.maximum(counts.sum(), 1)


def allocation_entropy(found: Routes) -> float:
  """Returns H(first choices) / ln E: 1 = all experts are equally often first, 0 = one always is."""
  first = found.experts[:, 0][found.experts[:, 0] >= 0]
  return _over(_entropy(np.bincount(first, minlength=found.num_experts)), math.log(found.num_experts))


def usage_perplexity(found: Routes) -> float:
  """Returns exp(H(load)) / E: the share of experts that would do, were they used equally."""
  return math.exp(_entropy(load(found))) / found.num_experts


def dead(found: Routes) -> float:
  """Returns the share of experts that no token has."""
  return float(np.mean(load(found) == 0))


def without(found: Routes) -> float:
  """Returns the share of tokens that no expert computes: all of their choices found no slot."""
  return _mean((found.experts < 0).all(1))


def by_place(found: Routes, real: np.ndarray) -> np.ndarray:
  """Returns f64[T]: how many experts compute a token at a place of its row, mean over rows; NaN of no token.

  Args: real: bool[B,T], True at the n tokens of `found`, which come in this order.
  """
  computed = np.zeros(real.shape)
  computed[real] = (found.experts >= 0).sum(1)
  count = real.sum(0)                                                # [T]
  return np.where(count > 0, computed.sum(0) / np.maximum(count, 1), math.nan)


def weight_entropy(found: Routes) -> float:
  """Returns the mean of H(w_t) / ln k over tokens of several experts: 1 = equal weights; NaN of none."""
  count = (found.experts >= 0).sum(1)                                # [n]
  shares, count = found.shares[count > 1], count[count > 1]
  entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1)
  return _mean(entropy / np.log(count))


def margin(found: Routes) -> float:
  """Returns the mean of w_(1) - w_(2), the two largest weights of a token; NaN where all have one expert."""
  several = (found.experts >= 0).sum(1) > 1
  if not several.any():
    return math.nan
  return _mean(found.shares[several, 0] - found.shares[several, 1])


def coactivation(found: Routes) -> np.ndarray:
  """Returns f64[E,E]: the share of the tokens of expert i that expert j has, too; 0 for dead experts."""
  taken = found.taken.astype(np.float64)
  together = taken.T @ taken                                         # [E, E]
  return together / np.maximum(np.diag(together)[:, None], 1)


def strongest(pairs: np.ndarray, most: int = 15) -> list[tuple[int, int, float]]:
  """Returns (i, j, share) of the largest entries of coactivation [E,E] beside its diagonal, largest first."""
  off = np.where(np.eye(len(pairs), dtype=bool), -1, pairs)
  order = np.argsort(-off, axis=None, kind='stable')[:most]
  found = [(int(n // len(pairs)), int(n % len(pairs))) for n in order]
  return [(i, j, float(pairs[i, j])) for i, j in found if i != j and pairs[i, j] > 0]


# Of two checkpoints, on the same tokens; or of two layers.

def overlap(found: Routes, other: Routes) -> float:
  """Returns the mean of |I_t & I'_t| over the larger of both k, where a token has an expert in either.

  Between a checkpoint and the last one the mean is router saturation, and 1 minus it the expert change rate.
  Between a layer and the layer before it is layer overlap.
  """
  both = (found.taken & other.taken).sum(1)
  most = np.maximum(found.taken.sum(1), other.taken.sum(1))
  return _mean(both[most > 0] / most[most > 0])


def first_agreement(found: Routes, other: Routes) -> float:
  """Returns the share of tokens whose first expert is the same, of those that have one in both."""
  there = (found.experts[:, 0] >= 0) & (other.experts[:, 0] >= 0)
  return _mean(np.float64(found.experts[there, 0] == other.experts[there, 0]))


def slot_change(found: Routes, other: Routes) -> float:
  """Returns the share of choices that differ place by place: two experts that change places count twice."""
  most = min(found.experts.shape[1], other.experts.shape[1])
  mine, theirs = found.experts[:, :most], other.experts[:, :most]
  there = (mine >= 0) | (theirs >= 0)
  return _mean((mine != theirs)[there])


def universality(layers: Sequence[Routes]) -> float:
  """Returns the mean over pairs of layers, also of one with itself, of sum_e min(load_e, load'_e).

  Of layers that share their experts: 1 = all layers use them alike. NaN where E differs.
  """
  if len({found.num_experts for found in layers}) != 1:
    return math.nan
  loads = np.stack([load(found) for found in layers])                # [L, E]
  return float(np.minimum(loads[:, None], loads[None]).sum(-1).mean())


def _entropy(counts):
  """H in nats of counts [E], which need not add up to 1."""
  shares = counts[counts > 0] / max(counts.sum(), 1e-300)
  return float(-np.sum(shares * np.log(shares)))


def _over(value, most):
  return value / most if most > 0 else math.nan


def _mean(values):
  return float(np.mean(values)) if len(values) else math.nan
