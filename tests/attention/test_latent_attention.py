"""Latent attention against its definition written out head by head; rotary pairs; scaled positions."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.attention import latent_attention
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import rotary
from stmoe.parts import visible
from stmoe.parts.rotary_scaling import yarn
from tests.attention import calls

SIZES = dict(num_heads=3, head_dim=4, nope_dim=6, value_dim=5, kv_rank=7)


def rms(x):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)


def turned(x, positions):
  """x [T,P] with neighbours as pairs turned by position * 10000^(-2i/P), pairs left where they are."""
  out = np.array(x)
  for i in range(x.shape[-1] // 2):
    angle = positions * 10000.0 ** (-2 * i / x.shape[-1])
    a, b = x[:, 2 * i], x[:, 2 * i + 1]
    out[:, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
    out[:, 2 * i + 1] = b * np.cos(angle) + a * np.sin(angle)
  return out


@pytest.mark.parametrize('q_rank', [None, 8])
def test_latent_attention_equals_its_definition(q_rank):
  layer = latent_attention.LatentAttention(12, q_rank=q_rank, rngs=nnx.Rngs(0), logit_scale=1.5, **SIZES)
  x, positions = np.asarray(jax.random.normal(jax.random.key(1), (1, 5, 12)), np.float64), np.arange(5)
  w = {name: np.asarray(getattr(layer, name)[...], np.float64) for name in ('wq', 'wkv_down', 'wkv', 'wo')}
  down = x[0] if q_rank is None else rms(x[0] @ np.asarray(layer.wq_down[...], np.float64))
  q = (down @ w['wq']).reshape(5, 3, 10)
  compressed = x[0] @ w['wkv_down']                                  # [T, 7 + 4]
  up = (rms(compressed[:, :7]) @ w['wkv']).reshape(5, 3, 11)
  shared = turned(compressed[:, 7:], positions)
  heads = []
  for h in range(3):
    query = np.concatenate([q[:, h, :6], turned(q[:, h, 6:], positions)], -1)
    logits = query @ np.concatenate([up[:, h, :6], shared], -1).T * 1.5 / np.sqrt(10)
    probs = np.exp(np.where(np.tril(np.ones((5, 5))) > 0, logits, -np.inf))
    heads.append(probs / probs.sum(-1, keepdims=True) @ up[:, h, 6:])
  seen = visible.Visible(mask=visible.causal(jnp.ones((1, 5), jnp.int32)),
                           turn=rotary.table(jnp.arange(5)[None], 4))
  np.testing.assert_allclose(calls.call(layer, jnp.asarray(x, jnp.float32), seen)[0],
                             np.concatenate(heads, -1) @ w['wo'], atol=1e-5)


def test_half_split_pairs_are_another_function_of_the_same_weights():
  x = jax.random.normal(jax.random.key(2), (1, 5, 12))
  seen = visible.Visible(mask=visible.causal(jnp.ones((1, 5), jnp.int32)),
                           turn=rotary.table(jnp.arange(5)[None], 4))
  build = lambda i: latent_attention.LatentAttention(12, interleaved=i, rngs=nnx.Rngs(0), **SIZES)
  a, b = (calls.call(build(i), x, seen) for i in (True, False))
  assert np.abs(a - b).max() > 1e-3


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
  scaling = yarn.Yarn(factor=8.0, length=64, fast=4.0, slow=0.5, size=1.25)
  plain, (rate, size) = 10000.0 ** (-np.arange(16) / 16), scaling(
      jnp.asarray(10000.0 ** (-np.arange(16) / 16)), 10000.0, jnp.float32(1))
  turns = 64 * plain / (2 * np.pi)
  np.testing.assert_allclose(rate[turns > 5], plain[turns > 5], rtol=1e-6)
  np.testing.assert_allclose(rate[turns < 0.25], plain[turns < 0.25] / 8, rtol=1e-6)
  between = (turns < 2) & (turns > 1)
  assert between.any() and (rate[between] < plain[between]).all() and (rate > plain / 8 * 0.999).all()
  cos, _ = rotary.table(jnp.zeros((1, 1), jnp.int32), 32, scaling=scaling)
  assert size == 1.25 and float(cos[0, 0, 0, 0]) == 1.25


def test_model_that_does_not_turn_is_one_line():
  layer = nnx.eval_shape(lambda: latent_attention.LatentAttention(12, rngs=nnx.Rngs(0), **SIZES))
  ones = jnp.ones((1, 3), jnp.int32)
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0,
                         visible=visible.Visible(mask=jnp.ones((1, 1, 3, 3), bool), turn=None))
  with pytest.raises(UserError, match="latent_attention turns.*nearest: model.name='lm'"):
    jax.eval_shape(layer, jnp.ones((1, 3, 12)), ctx, {})
