"""What every optimizer must do."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.train import optimizers

_NAMES = dict(w=('expert', 'embed', 'mlp'), b=('embed',))


def makes_a_loss_smaller(name: str, **fields) -> None:
  """Twenty steps make a squared error smaller, and parameters stay finite and keep their types."""
  own, params = _made(name, fields)
  loss = lambda params: sum(jnp.sum(jnp.square(p - 1.0)) for p in jax.tree.leaves(params))
  state, after = own.init(params), params

  @jax.jit
  def step(params, state):
    return own.update(jax.grad(loss)(params), state, params, jnp.float32(0.01))
  for _ in range(20):
    after, state = step(after, state)
  alike = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, params)
  assert all(jax.tree.leaves(alike)), 'parameters have other shapes or types after a step'
  assert loss(after) < loss(params), f'the loss went from {loss(params)} to {loss(after)}'


def stays_where_nothing_moves(name: str, **fields) -> None:
  """With `moves` False parameters and state stay as they were, as in steps that are skipped."""
  own, params = _made(name, fields)
  state = own.init(params)
  grads = jax.tree.map(jnp.ones_like, params)
  kept = own.update(grads, state, params, jnp.float32(0.1), jnp.bool_(False))
  jax.tree.map(np.testing.assert_array_equal, kept, (params, state))


def experts_do_not_meet(name: str, **fields) -> None:
  """What happens to the parameters of an expert depends on no other expert."""
  own, params = _made(name, fields)
  grads = jax.tree.map(jnp.cos, params)
  others = dict(grads, w=grads['w'].at[1:].mul(7.0))
  move = lambda grads: own.update(grads, own.init(params), params, jnp.float32(0.1))[0]['w'][0]
  np.testing.assert_allclose(move(grads), move(others), rtol=1e-5, atol=1e-7,
                             err_msg='an expert moves otherwise beside others')


def _made(name, fields):
  """(the Optimizer, its parameters): three experts' matrices, and a vector."""
  params = dict(w=jax.random.normal(jax.random.key(0), (3, 8, 6)), b=jnp.zeros(8))
  shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
  return optimizers.of(dict(name=name) | fields, _NAMES, shapes), params
