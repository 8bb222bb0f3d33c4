"""The dense spatial map of gMLP: every channel is mixed over positions by the matrix of its head."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.experts import feature


def toeplitz(v: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
  """Returns f32[h,N,N], [in,out]: v[N-1-(m-j)] * column[j] * row[m] from position j to m >= j, else 0.

  These are the "circulant" weights of public gMLP code: one vector a head for N^2 weights, times two vectors
  that tell positions apart. They are always causal.

  Args:
    v, row, column: f32[h,N].
  """
  lag = jnp.arange(v.shape[-1]) - jnp.arange(v.shape[-1])[:, None]   # [in, out]: m - j
  w = jnp.where(lag >= 0, v[:, jnp.minimum(v.shape[-1] - 1 - lag, v.shape[-1] - 1)], 0)
  return w * column[:, :, None] * row[:, None, :]


def mix(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """Returns sum_j w[h,j,m] x[g,c,j] + b[h,m], where channel c is of head h = c // (C/h).

  Args:
    x: [G,C,n] channels of sequences of n positions.
    w: [h,N,N] [in,out], n <= N: the first n positions are used; b: [h,N].
  """
  groups, channels, n = x.shape
  heads = x.reshape(groups, w.shape[0], -1, n)                       # [G, h, C/h, n]
  y = jnp.einsum('ghcj,hjm->ghcm', heads, w[:, :n, :n].astype(x.dtype)) + b[:, None, :n].astype(x.dtype)
  return y.reshape(groups, channels, n)


class Spatial(nnx.Module):
  """One spatial matrix S and bias beta a head (gMLP, arXiv:2105.08050, section 2.1).

  The interface is that of `moe.Moe`, on rows that are channels; `layers/gmlp.py` takes either.

  Args:
    d_model:   N, the most positions.
    heads:     equal chunks of the channels, each with a matrix of its own.
    causal:    whether a position receives from itself and earlier positions only.
    circulant: S is made of vectors, see `toeplitz`, and is always causal. The product is as large.
    allow_causal: accept causal=False in a stack in which a token must not depend on later tokens.
  """

  def __init__(self, d_model: int, *, heads: ranges.Count = 1, causal: ranges.Flag = True,
               circulant: ranges.Flag = False, allow_causal: ranges.Flag = False, rngs):
    self.b = axes.param(nnx.initializers.ones, (heads, d_model), 'heads', 'length', rngs=rngs)
    shape = (heads, d_model) if circulant else (heads, d_model, d_model)
    names = ('heads', 'length', 'length')[:len(shape)]
    self.w = axes.param(feature.near_zero(d_model), shape, *names, rngs=rngs)
    ones = lambda: axes.param(nnx.initializers.ones, shape, *names, rngs=rngs)
    self.row = ones() if circulant else None
    self.column = ones() if circulant else None
    self.products_per_row = d_model ** 2 if circulant else None      # its arrays are no matrices
    self.heads = heads
    self.causal = causal
    self.circulant = circulant
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [G,C,n], None, carry) for x [G,C,n]."""
    if ctx.causal and not (self.causal or self.circulant or self.allow_causal):
      raise UserError('layer spatial: causal=False lets later tokens decide in a causal stack; nearest: '
                      'causal=True (or allow_causal=True)')
    if x.shape[1] % self.heads:
      raise UserError(f'layer spatial: heads={self.heads} does not divide the {x.shape[1]} channels')
    w = self.w[...]
    if self.row is not None and self.column is not None:
      w = toeplitz(w, self.row[...], self.column[...])
    elif self.causal:
      w = feature.causal(w)
    return mix(x, w, self.b[...]), None, carry
