"""Sub-MoE: experts with like outputs become one, their mean in the subspace that their matrices share.

Li et al., "Subspace Expert Merging" (arXiv:2506.23266). All experts compute all tokens of the calibration.
k-means puts experts with like outputs into groups. The matrices [out,in] of a group, side by side, are
U S [V1 ... Vn]^T. The paper averages the V by usage, and keeps the r largest of S. Now S V_i^T = U^T W_i. So
the merged matrix is U_r U_r^T W, W being the average of the group by usage: this is what is computed here.
Whitening with the inputs of each expert changes U alone. At full rank the result is W itself.

  stmoe compress runs/full sub_moe:keep=0.5 --workdir runs/half
  stmoe compress runs/full sub_moe:keep=0.5,rank=64,whitened=True,factored=True --workdir runs/small

Differs: k-means begins with the most used expert and those farthest from all before. Whether columns of the
  router are shared or summed is unverified: both are there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import layout
from stmoe.surgery import mc_smoe
from stmoe.surgery import merge
from stmoe.surgery import sparse

# Inner products of the outputs of two experts, summed over tokens.
GEOMETRIES = {'cosine': 'output_cosines', 'euclidean': 'output_products'}
STEPS = 100                              # of k-means, at most
MOMENTS = {'expert_embed': 'input_products', 'expert_mlp': 'own_hidden_products'}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, rank: ranges.Count | None = None, whitened: ranges.Flag = False,
            factored: ranges.Flag = False, geometry: ranges.Choice(*GEOMETRIES) = 'cosine',
            router: ranges.Choice('shared', 'sum') = 'shared') -> tuple[dict, dict]:
  """Returns (params, changes) with one expert for each group of every layer's experts; see `sparse`.

  Args:
    keep:     groups over experts.
    rank:     r of the subspace; None = all of it.
    whitened: the subspace is that of W_i S_i, S_i S_i^T being the second moment of the expert's inputs.
    factored: matrices of rank r are stored as two factors, in the bank `low_rank`.
    geometry: outputs are of length 1 before they are compared, or as they are.
    router:   'shared' keeps the columns of all members, whose weights add up; in 'sum' a group's column is
      the sum of theirs.
  """
  layers = sparse.found(config)
  _check(layers, params, rank, whitened, factored)
  numbers = sparse.kept(layers, keep)
  changes = _changes(layers, params, config, numbers, router, keep)
  new_layers = sparse.found(sparse.changed(config, changes))         # raises what routers say of the number
  products = GEOMETRIES[geometry]
  statistics = calibration('load', products, *(('coactivation', *MOMENTS.values()) if whitened else ()))
  replaced = aside.Made()
  for layer, new in zip(layers, new_layers):
    sums = statistics[layer.name]
    used = merge.usage(sums['load'][:layer.num_experts])
    members = clusters(sums[products], numbers[layer.where], int(np.argmax(used)))
    parts = fewer.shares(members, used)
    if factored and rank is not None:
      network = mc_smoe.network(layer, params)
      changes[f'{layer.where}.experts'] = mc_smoe.section(layer.module.experts, network, rank, False)
    replaced[(*layer.path, 'experts')] = _bank(layer, params, members, parts, sums, rank, whitened, factored)
    if router == 'shared':
      replaced[(*layer.path, 'router')] = dict(inner=sparse.router(layer, params), table=merge.table(members))
    else:
      replaced |= fewer.averaged(layer, new, params, np.sign(fewer.shares(members, np.ones_like(used))))
  return sparse.replaced(params, replaced), changes


def _check(layers, params, rank, whitened, factored):
  """Raises UserError for a rank that the matrices do not have, or that is missing."""
  if rank is None and (factored or whitened):
    raise errors.UserError(f'rank=None: the whole space has no use for factored={factored} or for '
                           f'whitened={whitened}; nearest: rank=64')
  for layer in layers if rank is not None else ():
    for array, _ in sparse.matrices(layer, params).values():
      mc_smoe.check_rank(layer, array, rank)
    if factored:
      mc_smoe.network(layer, params)


def _changes(layers, params, config, numbers, router, keep):
  """The changes that give every layer its number of experts."""
  if router == 'shared':
    return merge.remapped(config, numbers)
  for layer in layers:
    fewer.check(layer, params, numbers[layer.where], keep)
  return {f'{where}.router.num_experts': number for where, number in numbers.items()}


def _bank(layer, params, members, parts, sums, rank, whitened, factored):
  """The nested dict of the merged bank of a layer, [E',...] each."""
  bank: dict = {}
  matrices = {} if rank is None else sparse.matrices(layer, params)
  for path, array in layer.arrays(params, 'experts').items():
    if path not in layer.owned(params):
      layout.put(bank, path, array)      # shared by all experts
    elif path not in matrices:
      layout.put(bank, path, fewer.mixed(parts, array))
    else:
      moments = _moments(sums, matrices[path][1]) if whitened else None
      layout.put(bank, path, _projected(array, members, parts, moments, rank, factored))
  return bank


def _projected(array, members, parts, moments, rank, factored):
  """[E',in,out], or dict(u [E',in,r], v [E',r,out]): means of groups in the subspaces of their outputs."""
  made = []
  for group, mean in zip(members, fewer.mixed(parts, array)):
    own = [np.asarray(array[expert], np.float64).T for expert in group]
    axes, values = subspace(own, None if moments is None else [moments[expert] for expert in group])
    axes, root = axes[:, :rank], np.sqrt(values[:rank])              # [out, r], [r]
    low = np.asarray(mean, np.float64) @ axes                        # [in, r]
    if factored:
      root = np.where(root > 0, root, 1)
      made.append(dict(u=jnp.asarray(low / root, array.dtype), v=jnp.asarray((axes * root).T, array.dtype)))
    else:
      made.append(jnp.asarray(low @ axes.T, array.dtype))
  return jax.tree.map(lambda *one: jnp.stack(one), *made)


def _moments(sums, inputs):
  """[E,in,in], the mean products of the inputs of each expert; 0 for an expert without tokens."""
  tokens = np.maximum(np.diagonal(sums['coactivation']), 1)
  return sums[MOMENTS[inputs]] / tokens[:, None, None]


def subspace(matrices: Sequence[np.ndarray],
             moments: Sequence[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns (U [a,a], singular values [a], falling) of matrices [a,b] side by side, each times its S.

  Args:
    moments: [b,b] of each, S S^T; None = without S.

  >>> subspace([np.diag([1.0, 2.0]), np.diag([0.0, 1.0])])[1].round(3).tolist()
  [2.236, 1.0]
  """
  total = np.zeros((len(matrices[0]),) * 2)
  for number, w in enumerate(matrices):
    total += w @ (w.T if moments is None else moments[number] @ w.T)
  values, axes = np.linalg.eigh(total)
  return axes[:, ::-1], np.sqrt(np.maximum(values[::-1], 0))


def clusters(products: np.ndarray, number: int, first: int) -> list[list[int]]:
  """Returns `number` groups of experts by k-means, in the order of their first members.

  The distance of an expert to the mean of a group follows from inner products alone.

  Args:
    products: [E,E], inner products of the experts' vectors.
    first:    the expert with which the choice of first means begins.

  >>> clusters(np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]]), 2, 0)
  [[0, 2], [1]]
  """
  own = np.diagonal(products)
  apart = own[:, None] + own - 2 * products
  heads = [first]
  while len(heads) < number:
    nearest = apart[:, heads].min(1)
    nearest[heads] = -np.inf
    heads.append(int(nearest.argmax()))
  label = apart[:, heads].argmin(1)
  label[heads] = np.arange(number)
  for _ in range(STEPS):
    mean = np.eye(number)[label] / np.bincount(label, minlength=number)        # [E, k] parts of means
    to_means = own[:, None] - 2 * products @ mean + np.einsum('ik,ij,jk->k', mean, products, mean)
    moved = _none_empty(to_means.argmin(1), to_means, number)
    if (moved == label).all():
      break
    label = moved
  groups = [np.flatnonzero(label == group).tolist() for group in range(number)]
  return sorted(groups)


def _none_empty(label, to_means, number):
  """`label` i[E] in which every group without members got the expert that is farthest from its own mean."""
  for group in range(number):
    if not (label == group).any():
      alone = np.bincount(label, minlength=number)[label] == 1
      distance = np.where(alone, -np.inf, to_means[np.arange(len(label)), label])
      label[distance.argmax()] = group
  return label
