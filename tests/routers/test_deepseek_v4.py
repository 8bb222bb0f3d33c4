"""DeepSeek-V4's routing by hand: gates of scores whoever chose, tables of different experts, wrong tables."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.layers import dense
from stmoe.routers import deepseek_v4

# s = sqrt(ln(1 + e^z)): z of s^2 is ln(e^(s^2) - 1).
SCORES = np.array([[[3.0, 1.0, 2.0, 0.5]]])
LOGITS = jnp.asarray(np.log(np.expm1(SCORES ** 2)), jnp.float32)
route = jax.jit(deepseek_v4.deepseek_v4, static_argnums=3)


def weights(bias, hashed=None):
  a, _ = route(LOGITS, jnp.asarray(bias), np.ones((1, 1), bool), 2, hashed=hashed)
  return np.asarray(assignment.masks(a)[1].sum(-1)[0, 0])


def test_gates_are_scores_over_their_sum_whoever_chose():
  np.testing.assert_allclose(weights([0.0] * 4), [0.9, 0, 0.6, 0], rtol=1e-5)      # 3/5 and 2/5, times 1.5
  np.testing.assert_allclose(weights([0.0, 0.0, 0.0, 9.0]), [9 / 7, 0, 0, 1.5 / 7], rtol=1e-5)
  np.testing.assert_allclose(weights([9.0, 0.0, 0.0, 0.0], jnp.array([[[1, 3]]])), [0, 1, 0, 0.5], rtol=1e-5)


def test_a_table_gives_every_id_different_experts_and_every_expert_as_many_ids():
  router = deepseek_v4.DeepSeekV4(4, num_experts=8, k=3, hashed=True, vocab_size=64, rngs=nnx.Rngs(0))
  table = np.asarray(router.table[...])
  assert all(len(set(row)) == 3 for row in table.tolist())
  assert (np.bincount(table.ravel(), minlength=8) == 64 * 3 / 8).all()
  router.commit(contract.Aux(losses={}, load=jnp.arange(8.0), metrics={}))
  assert not router.bias[...].any()                                  # nothing is chosen by it


def test_impossible_fields():
  with pytest.raises(errors.UserError, match="table='t.npz' is for hashed layers; nearest: hashed=True"):
    deepseek_v4.DeepSeekV4(4, num_experts=8, table='t.npz', rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='limit=10.0 is of the product of a gated network'):
    dense.Dense(4, d_ff=4, limit=10.0, rngs=nnx.Rngs(0))
  router = deepseek_v4.DeepSeekV4(4, num_experts=8, hashed=True, vocab_size=64, rngs=nnx.Rngs(0))
  whole = jnp.zeros((1, 2), jnp.int32)
  ctx = contract.Context(mask=whole == 0, ids=whole, positions=whole, segments=whole + 1, step=jnp.int32(0),
                         tokens=jnp.float32(2), vocab_size=32)
  with pytest.raises(errors.UserError, match='a table of 64 ids in a model of 32; nearest: vocab_size=32'):
    router(jnp.ones((1, 2, 4)), ctx, {})
