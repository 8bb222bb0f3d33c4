"""MixtureGrowth: a network of twice the width from two small ones, weights being mixtures of templates.

Pham et al. (arXiv:2311.04251). Every weight of a small network is W_m = sum_t alpha_mt T_st, a mixture of the
templates of its set s. The grown weight is [[W_0, W_2], [W_3, W_1]]: the two small networks on the diagonal,
and beside them mixtures of the same templates with new coefficients. As a surgery, pairs of experts become
experts of twice the width.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import merge
from stmoe.surgery import sparse


def members(templates: np.ndarray, coefficients: np.ndarray, sets: tuple[int, ...]) -> np.ndarray:
  """Returns [m,out,in], the mixtures of templates [2,k,out,in] with coefficients [m,k]; member i is of set i.

  Args:
    sets: the set of every member; of the four of a grown weight (0, 1, 0, 1) or (0, 1, 1, 0).
  """
  return np.einsum('mk,mkoi->moi', coefficients, templates[list(sets)])


def grown(parts: np.ndarray) -> np.ndarray:
  """Returns [2 out,2 in], the weight [[W_0, W_2], [W_3, W_1]] of four members [4,out,in].

  >>> grown(np.arange(4.0).reshape(4, 1, 1)).tolist()
  [[0.0, 2.0], [3.0, 1.0]]
  """
  return np.block([[parts[0], parts[2]], [parts[3], parts[1]]])


def _copied(known, rng, noise):
  return known + noise * rng.normal(size=known.shape)


def _orthogonal(known, rng, noise):
  """The last right singular vectors of all coefficients so far, one after the other."""
  made = list(known)
  for _ in range(2):
    made.append(np.linalg.svd(np.stack(made))[2][-1])
  return np.stack(made[len(known):])


# How the coefficients [2,k] of members 2 and 3 begin, from those of 0 and 1.
BEGIN = {
    'copy': _copied,
    'orthogonal': _orthogonal,
    'zero': lambda known, rng, noise: np.zeros_like(known),
    'random': lambda known, rng, noise: rng.normal(size=known.shape),
}


def coefficients(known: np.ndarray, begin: str, noise: float = 0.0, seed: int = 0) -> np.ndarray:
  """Returns alpha [4,k] of a grown weight from those of the two small networks, known [2,k].

  Args:
    begin: a key of BEGIN. With 'zero' the grown network is the two small ones side by side.
    noise: standard deviation of what is added to copies.

  >>> coefficients(np.eye(2), 'zero').tolist()
  [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
  """
  if begin not in BEGIN:
    raise errors.UserError(f'begin={begin!r}{errors.nearest(begin, BEGIN)} (there are: {", ".join(BEGIN)})')
  return np.concatenate([known, BEGIN[begin](known, np.random.default_rng(seed), noise)])


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5) -> tuple[dict, dict]:
  """Returns (params, changes) with experts 2i and 2i + 1 in one of twice the width; see `sparse`.

  Coefficients beside the diagonal are zero, and the two halves of the output are averaged: a grown expert
  computes the mean of its two. It has the gates of both, the router being inside of `remap`.

  Args:
    keep: 0.5, experts over experts; at 1.0 nothing grows.
  """
  if keep == 1.0:
    return params, {}
  if keep != 0.5:
    raise errors.UserError(f'keep={keep}: pairs of experts grow, which are half as many; nearest: keep=0.5')
  made = aside.Made()
  changes: dict[str, object] = {}
  for layer in sparse.found(config):
    section = sparse.section(config, layer.where)
    bank, number = section.experts, layer.num_experts
    if number % 2 or bank.name not in ('mlp', 'glu'):
      raise errors.UserError(f'{layer.where}: {number} experts {bank.name!r}; grown are an even number of '
                             "'mlp' or 'glu'")
    made |= {(*layer.path, 'experts', *path): paired(array, layer.axes('experts')[path][0])
             for path, array in layer.owned(params).items()}
    pairs = merge.table([[i, i + 1] for i in range(0, number, 2)])
    made[(*layer.path, 'router')] = dict(inner=sparse.router(layer, params), table=pairs)
    changes |= {f'{layer.where}.experts.d_ff': 2 * bank.d_ff,
                f'{layer.where}.router': dict(name='remap', num_experts=number // 2,
                                              inner=section.router.to_dict())}
  return sparse.replaced(params, made), changes


def paired(array: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """Returns [E/2,...] of an array [E,...]: two experts' hidden units side by side, all else their mean.

  Args:
    names: logical axes of the array. What comes from hidden units, not to them, is halved.
  """
  first, second = array[0::2], array[1::2]
  if merge.HIDDEN not in names:
    return (first + second) / 2
  axis = names.index(merge.HIDDEN)
  return jnp.concatenate([first, second], axis) * (1.0 if axis == len(names) - 1 else 0.5)
