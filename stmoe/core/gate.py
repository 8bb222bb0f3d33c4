"""The linear gate of routers: its weights and the logits it gives, both float32."""

import typing

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract

INIT = jax.nn.initializers.normal(0.02)  # flaxformer's, for all routers whose paper names no other


def weights(d_model: int, num_experts: int, *, rngs,
            init: typing.Callable[..., jax.Array] = INIT) -> typing.Any:
  """Returns the parameter f32[D,E], drawn by `init`."""
  return axes.param(init, (d_model, num_experts), 'embed', 'unmodeled', rngs=rngs)


def logits(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns x W f32[G,S,E] in full precision: a rounded logit may be another expert.

  Args:
    x: [G,S,D] of any float type.
    w: f32[D,E].
  """
  y = jnp.matmul(axes.rows(x.astype(jnp.float32)), w, precision='highest')
  return y.reshape(*x.shape[:-1], -1)


def plain(router: typing.Any, x: jax.Array, ctx: contract.Context) -> jax.Array:
  """Returns f32[G,S,E] for x [G,S,D]: the method `logits` of a router that has nothing but w f32[D,E]."""
  return logits(x, router.w[...])
