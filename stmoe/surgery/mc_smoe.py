"""MC-SMoE: the matrices of experts, merged before, become U V of low rank plus a part S that is pruned.

Li et al., "Merge, Then Compress" (arXiv:2310.01334). `merge` is the first half, M-SMoE. Its run is trained
with the target `mc_smoe`, and then compressed here. At the start W = U V + S exactly: nothing is lost, and
more is stored. Training then prunes rows of S, an output unit of a matrix each (`train/row_pruning.py`).

  stmoe compress runs/full merge:keep=0.25,allocation=global --workdir runs/merged --distil mc_smoe \
      --config.groups.router.train=False
  stmoe train runs/merged
  stmoe compress runs/merged mc_smoe:keep=0.1,rank=32 --workdir runs/small --config.train.steps=2000
  stmoe train runs/small

Differs: rows of S that are 0 stay in the arrays; the reference drops them at the end.
"""

import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import sparse

# Arrays of a bank that become factors, and arrays that stay; a bank with another one is another network.
MATRICES, BIASES = {'wi', 'wg', 'wo'}, {'bi', 'bo'}
LABEL = 'sparse'                         # of S, see `experts/low_rank.py`


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.1, rank: ranges.Count | None = None, ratio: ranges.PartOf1 = 0.05,
            before: ranges.Natural = 100, after: ranges.Natural = 400, every: ranges.Count = 1,
            memory: ranges.Below1 = 0.85) -> tuple[dict, dict]:
  """Returns (params, changes) with every expert's matrices as U V + S, whose training prunes S; see `sparse`.

  Args:
    keep:   share v_f of S that training leaves; at 1.0 nothing is pruned.
    rank:   of U V; None = what makes share `ratio` of the parameters of a matrix. The example's 32 is 0.052
      of Switch-Base's.
    before, after, every, memory: of `groups.sparse.pruned`, see `row_pruning.around`. 100 and 4 * 100 steps
      are those of the released schedule.
  """
  made = aside.Made()
  changes: dict[str, object] = {}
  for layer in sparse.found(config):
    bank = network(layer, params)
    rows, columns = bank['wi'].shape[1:]
    r = rank_of(rows, columns, ratio) if rank is None else rank
    check_rank(layer, bank['wi'], r)
    made[(*layer.path, 'experts')] = {
        name: dict(zip('uvs', split(array, r))) if name in MATRICES else array
        for name, array in bank.items()}
    changes[f'{layer.where}.experts'] = section(layer.module.experts, bank, r, True)
  if keep < 1:
    pruned = dict(kept=keep, before=before, after=after, every=every, memory=memory)
    groups = config.groups.to_dict() if 'groups' in config else {}
    changes['groups'] = groups | {LABEL: groups.get(LABEL, {}) | dict(pruned=pruned)}
  return sparse.replaced(params, made), changes


def network(layer: sparse.Layer, params: dict) -> dict[str, jax.Array]:
  """Returns dict name -> array [E,...] of a bank of ordinary networks; raises UserError for another bank."""
  bank = {'.'.join(map(str, path)): array for path, array in layer.arrays(params, 'experts').items()}
  plain = (getattr(layer.module.experts, 'slope', 1), getattr(layer.module.experts, 'offset', 0)) == (1, 0)
  if not plain or not {'wi', 'wo'} <= bank.keys() <= MATRICES | BIASES:
    name = type(layer.module.experts).__module__.rpartition('.')[2]
    raise errors.UserError(f'{layer.where}.experts is {name} of {", ".join(sorted(bank))}; factored are '
                           "'mlp', and 'glu' without multiplicative_bias, slope, offset and biases")
  return bank


def check_rank(layer: sparse.Layer, array: jax.Array, rank: int) -> None:
  """Raises UserError for a rank that matrices [E,in,out] of a layer do not have."""
  most = min(array.shape[1:])
  if rank > most:
    raise errors.UserError(f'rank={rank} of matrices of {layer.where} whose smaller side is {most}; nearest: '
                           f'rank={most}')


def section(bank: typing.Any, arrays: dict, rank: int, rest: bool) -> dict:
  """Returns the configuration of the bank `low_rank` that computes what `bank` does.

  Args:
    arrays: dict name -> array of `bank`; rest: with the part S.
  """
  common = dict(name='low_rank', d_ff=arrays['wi'].shape[-1], rank=rank, sparse=rest,
                activation=bank.activation, dropout_rate=bank.dropout_rate)
  return common | dict(gated='wg' in arrays, use_bias='bi' in arrays, limit=getattr(bank, 'limit', None))


def rank_of(rows: int, columns: int, ratio: float) -> int:
  """Returns the rank whose two factors have share `ratio` of the entries of a matrix, rounded up.

  >>> rank_of(768, 3072, 0.05)
  31
  """
  return ranges.rounded_up(ratio * rows * columns / (rows + columns))


def split(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (u [...,in,r], v [...,r,out], s [...,in,out]) with u v + s = w, of matrices w [...,in,out].

  u v is the best approximation of rank r; both factors have the roots of the singular values.

  >>> u, v, s = split(jnp.diag(jnp.array([9.0, 4.0, 1.0])), 2)
  >>> abs(s).round(4).tolist()
  [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
  """
  left, values, right = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
  root = np.sqrt(values[..., :rank])
  u = np.asarray(left[..., :rank] * root[..., None, :], w.dtype)
  v = np.asarray(root[..., None] * right[..., :rank, :], w.dtype)
  s = np.asarray(w, np.float64) - np.asarray(u, np.float64) @ np.asarray(v, np.float64)
  return jnp.asarray(u), jnp.asarray(v), jnp.asarray(s, w.dtype)
