"""Dynamic-DINO: dense layers become copies of themselves in slices; the function stays (arXiv:2507.17436).

N copies of a layer, each in k slices of hidden units, are E = k N experts. Routers have k equal columns for
the slices of a copy, so that a token has all of one copy. With k = 1 this is sparse upcycling
(arXiv:2212.05055).
"""

import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import dense
from stmoe.surgery import sparse

BALANCE = (0.01, 'mean')


def factorise(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
              copies: ranges.Count = 4, k: ranges.Count = 2,
              gates: ranges.Choice('scaled', 'ungated') = 'scaled', init_std: ranges.NonNegative = 0.02,
              letters: ranges.Text = '', seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) of a model with k * `copies` experts for each dense layer; see `dense`.

  The model computes what it did before, to round-off of the sum over slices.

  Args:
    copies:   N; k: slices of a copy, and experts of a token.
    gates:    of the router, see `routers/dynamic_dino.py`.
    init_std: of the routers' numbers, one column for a copy.
    letters:  of the blocks; '' = all with dense layers.
    seed:     of the routers' first numbers.
  Differs: the initial scale of routers is not known (u). Which parameters train is left to `groups`.
  """
  made = aside.Made()
  changes: dict[str, object] = {'losses.balance': BALANCE}
  for number, layer in enumerate(dense.found(config, letters)):
    section = sparse.section(config, layer.where)
    dense.check_parts(section, 'k', k)
    arrays = layer.arrays(params)
    width = arrays['wi'].shape[0]
    rows = np.random.default_rng([seed, number]).normal(0, init_std, (copies, width))
    made[layer.path] = dict(experts=experts(arrays, copies, k), router=dict(w=columns(rows, k)))
    router = dict(name='dynamic_dino', num_experts=copies * k, k=k, gates=gates)
    changes[layer.where] = dense.block(section, layer='moe', router=router,
                                       experts=dense.bank(section, section.d_ff // k))
  return sparse.replaced(params, made), changes


def experts(arrays: dict, copies: int, k: int) -> dict:
  """Returns dict name -> [E,...]: expert i k + j is slice j of copy i of a dense layer (weight allocation).

  Args:
    arrays: of `dense.Layer.arrays`. A slice has its part of the output bias, 1 / k.
  """
  return {name: jnp.tile(pieces, (copies, *[1] * (pieces.ndim - 1)))
          for name, pieces in dense.cut(arrays, k).items()}


def columns(rows: np.ndarray, k: int) -> np.ndarray:
  """Returns f32[D,E], the first matrix of a router: each of rows [N,D], one for a copy, k times.

  >>> columns(np.array([[1.0], [2.0]]), 2).tolist()
  [[1.0, 1.0, 2.0, 2.0]]
  """
  return np.repeat(rows, k, axis=0).T.astype(np.float32)
