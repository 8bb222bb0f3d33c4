"""Checks of Omni-router: given inputs of all layers, one matrix; in float64."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core.execute import einsum
from stmoe.routers import omni_router


def shared_router(case):
  with jax.enable_x64(True):
    _shared_router(case)


class Experts(types.SimpleNamespace):
  """E experts relu(x W1 + b1) W2 + b2 of one layer."""

  def __call__(self, rows, key=None):
    return rows.linear(self.w1, self.b1).map(jax.nn.relu).linear(self.w2, self.b2)


def _shared_router(case):
  c = case.config
  # Without noise the file has zeros or what was not added.
  noise = case.option('noise', {True: 1, False: 0}) * jnp.asarray(case['noise'])
  names = ('W1', 'b1', 'W2', 'b2')
  mask = jnp.ones((1, c['T']), bool)

  def layer(x, w, b, noise, before, banks):
    logits = (x @ w + b + noise)[None]                               # [1, T, E]
    choice = jnp.argmax(logits, axis=-1)[..., None]
    a, aux = omni_router.omni_router(logits, choice, before, mask, c['T'])
    y = einsum.execute(x[None], a, Experts(**{name.lower(): bank for name, bank in zip(names, banks)}))
    return y[0], aux, choice[..., 0], jax.nn.softmax(logits)[0], a

  def run(x, w, b):
    before, made = jnp.full((1, c['T']), omni_router.NONE), []
    for number in range(c['layers']):
      banks = [jnp.asarray(case[name][number]) for name in names]
      made.append(layer(x[number], w, b, noise[number], before, banks))
      before = made[-1][2]
    y = jnp.stack([one[0] for one in made])
    aux = sum(one[1].losses['balance'] for one in made)
    return jnp.sum(y * case['cotangent']) + c['aux_weight'] * aux, (y, aux, made)

  arrays = [jnp.asarray(case[name]) for name in ('x', 'W', 'b')]
  grads, (y, aux, made) = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*arrays)
  case.assert_close('y', y), case.assert_close('aux', aux[None])
  case.assert_close('prob', jnp.stack([one[3] for one in made]))
  expert = jnp.stack([one[4].expert[0] for one in made])             # nothing is dropped: all are live
  assert all(bool(assignment.live(one[4]).all()) for one in made)
  case.assert_close('expert', expert.astype(jnp.int32))
  case.assert_close('agreement', jnp.mean(expert[1:] == expert[:-1], axis=1, dtype=jnp.float64))
  reported = jnp.stack([one[1].metrics['agreement'] for one in made])              # float32, as all metrics
  np.testing.assert_allclose(reported, [0, *case['agreement']], rtol=1e-6)
  for name, grad in zip(('x', 'W', 'b'), grads):
    case.assert_close(f'grad_{name}', grad)
