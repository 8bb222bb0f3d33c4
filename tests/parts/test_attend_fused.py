"""Attention on the device at hand: cuDNN's kernel, where it is taken, equals XLA's own form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.parts import attend

HERE = jax.devices()[0]


def inputs(heads=4, kv_heads=2, length=256, width=64):
  draw = lambda seed, count: jax.random.normal(jax.random.key(seed), (2, length, count, width), 'bfloat16')
  segments = jnp.asarray(np.repeat([[1, 2], [1, 0]], length // 2, axis=1))         # packed, and padded
  seen = jnp.tril(jnp.ones((length, length), bool)) & (segments[:, :, None] == segments[:, None])
  return draw(0, heads), draw(1, kv_heads), draw(2, kv_heads), seen[:, None]


def both(q, k, v, mask, causal):
  """Output and gradients on a mesh of this device, in the dtype of q."""
  def f(q, k, v):
    y = attend.attend(q, k, v, mask=mask, bias=None, scale=0.125, causal=causal)
    return (y.astype('float32') ** 2).sum(), y
  mesh = jax.sharding.Mesh([HERE], ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    run = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True)).lower(q, k, v).compile()
  (_, y), gradients = run(q, k, v)
  return run.as_text(), [y, *gradients]


@pytest.mark.skipif(HERE.platform != 'gpu', reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('causal', [False, True])
def test_cudnn_equals_the_own_form(causal):
  q, k, v, mask = inputs()
  text, got = both(q, k, v, mask, causal)
  assert 'fmha' in text
  own, want = both(*(a.astype('float32') for a in (q, k, v)), mask, causal)
  assert 'fmha' not in own
  for a, b in zip(got, want):
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 2e-2


@pytest.mark.parametrize('change', [dict(dtype='float32'), dict(width=136), dict(length=64), dict(bias=True)])
def test_what_cudnn_does_not_compute(change, monkeypatch):
  gpu = jax.sharding.AbstractDevice('NVIDIA H200', 132, 'gpu')
  monkeypatch.setattr(attend, '_has_kernel', lambda: True)
  fused = lambda q, bias=None: attend._fused(q, q, bias)
  q = jax.ShapeDtypeStruct((2, 256, 4, 64), 'bfloat16')
  other = jax.ShapeDtypeStruct((2, change.get('length', 256), 4, change.get('width', 64)),
                               change.get('dtype', 'bfloat16'))
  one = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=gpu)
  with jax.sharding.use_abstract_mesh(one):
    assert fused(q) and not fused(other, change.get('bias'))
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ('data',), abstract_device=gpu)):
    assert not fused(q)
  assert not fused(q)
