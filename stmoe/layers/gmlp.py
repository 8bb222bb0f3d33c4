"""The gMLP layer: channel projection, spatial gating unit, channel projection; positions mix in the unit."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import modules
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import spatial
from stmoe.parts import linear
from stmoe.parts import norm


def spatial_gating_unit(x: jax.Array, normalize: typing.Callable[[jax.Array], jax.Array],
                        mix: typing.Callable[[jax.Array], jax.Array],
                        residual: float | None = None) -> jax.Array:
  """Returns r * (mix(normalize(g)) + residual) [...,F/2] for x = [r, g] [...,F] (arXiv:2105.08050, eq. 2-3).

  Normalisation is over the channels of g alone, before they are mixed over positions. With S = 0 and
  beta = 1 in `mix`, the unit returns r.

  Args:
    normalize, mix: functions [...,F/2] -> [...,F/2].
    residual:       [...,F/2] or None: added to the mixed half (the tiny attention of aMLP).
  """
  r, g = jnp.split(x, 2, axis=-1)
  gate = mix(normalize(g))
  return r * (gate if residual is None else gate + residual)


class Gmlp(nnx.Module):
  """SGU(GELU(x W_in + b_in)) W_out + b_out (gMLP, arXiv:2105.08050, section 2); attention=False, pre-norm.

  With a sparse layer as `inner` this is the sMoE of the sparse all-MLP (arXiv:2203.06850). The channels of a
  sequence are then the tokens that are routed, and experts are matrices over positions. `inner` never sees
  two sequences in a group, nor padding.

  Args:
    d_model, d_ff: D and F; half of the F channels are mixed, and gated by the other half.
    length:    N, the most positions of a row; shorter rows use the first weights.
    inner:     recipe of the layer that mixes positions, on rows that are channels: `spatial.Spatial`,
      or `moe.Moe` of one group a sequence.
    sequences: the most sequences that are packed into a row; outputs of further sequences are NaN.
    init_scale: variance scale s of sqrt(s / fan_in) of both projections.
  Differs: projections start truncated normal, their biases 0; public code has its framework's uniform.
  """

  undecodable = "its gate mixes the positions of a row; nearest: layer='dense' in a model with attention"

  def __init__(self, d_model: int, *, length: ranges.Count, d_ff: ranges.Count,
               inner: ranges.Named('layer', 'spatial') = spatial.Spatial, sequences: ranges.Count = 1,
               init_scale: ranges.Positive = 1.0, rngs):
    if d_ff % 2:
      raise UserError(f'layer gmlp: d_ff={d_ff} has no two equal halves; nearest: {d_ff - 1}, {d_ff + 1}')
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal')
    zeros = nnx.initializers.zeros
    self.wi = axes.param(init, (d_model, d_ff), 'embed', 'mlp', rngs=rngs)
    self.bi = axes.param(zeros, (d_ff,), 'mlp', rngs=rngs)
    self.norm = norm.LayerNorm(d_ff // 2, rngs=rngs)
    self.inner = inner(length, rngs=rngs)
    self.inner.rows_per_sequence = d_ff // 2                         # its matrices are passed by channels
    if list(modules.offering(self.inner, 'init_carry')):
      raise UserError('layer gmlp: its inner layer remembers something of other layers, where it has no '
                      "channels; nearest: inner.name='spatial'")
    self.wo = axes.param(init, (d_ff // 2, d_model), 'mlp', 'embed', rngs=rngs)
    self.bo = axes.param(zeros, (d_model,), 'embed', rngs=rngs)
    self.length = length
    self.sequences = sequences

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,n,D], aux of `inner`, carry) for x [B,n,D]; raises UserError for rows longer than N."""
    if x.shape[1] > self.length:
      raise UserError(f'layer gmlp: its weights are for {self.length} positions, rows have {x.shape[1]}; '
                      f'set length={x.shape[1]} in the block, or shorten the rows')
    reports = []

    def mix(g):
      rows, real, back = split_sequences(g, ctx.segments, self.sequences)
      y, aux, _ = checked.answer(self.inner, rows, of_channels(ctx, real, rows.shape[1]), {})
      reports.append(aux)
      return back(y)

    h = linear.apply(x, self.wi, self.bi)                            # [B, n, F]
    h = spatial_gating_unit(jax.nn.gelu(h, approximate=False), self.norm, mix)       # [B, n, F/2]
    return linear.apply(h, self.wo, self.bo), reports[0], carry


def of_channels(ctx: contract.Context, real: jax.Array, channels: int) -> contract.Context:
  """Returns the Context of `real` bool[G] sequences whose tokens are their channels: arrays [G,channels].

  The divisor of token-averaged losses is the number of channels of the real sequences of this microbatch.
  It equals the whole batch's divisor where microbatches have equally many sequences, as unpacked rows do.
  """
  mask = jnp.broadcast_to(real[:, None], (real.size, channels))
  tokens = channels * jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1)
  return ctx.fold('inner').instead(mask, tokens, vocab_size=channels)


def split_sequences(x: jax.Array, segments: jax.Array,
                    number: int) -> tuple[jax.Array, jax.Array, typing.Callable[[jax.Array], jax.Array]]:
  """Returns (rows [B*K,C,n], real bool[B*K], back): each of K sequences of a row by itself, axes swapped.

  A sequence's first position is entry 0 of its rows, whatever stands before it; other entries are 0.
  `back` puts [B*K,C,n] in the places the entries came from: [B,n,C].

  Args:
    x:        [B,n,C].
    segments: i32[B,n], 1, 2, ... the sequences of a row, 0 padding.
    number:   K. Entries of further sequences come back as NaN, so that they are noticed.
  """
  batch, length, channels = x.shape
  in_sequence = segments[:, None] == 1 + jnp.arange(number)[:, None]  # [B, K, n]
  at: jax.Array | None = None
  back_at: jax.Array | None = None
  shift = lambda x, by: x
  if number > 1:                                                     # a single one starts the row
    at = jnp.arange(length) + jnp.argmax(in_sequence, axis=-1)[..., None]  # [B, K, n]
    back_at = jnp.arange(length) - jnp.argmax(in_sequence, axis=-1)[..., None]
    shift = lambda x, at: jnp.take_along_axis(x, (at % length)[..., None], axis=2)
  rows = shift(jnp.where(in_sequence[..., None], x[:, None], 0), at)  # [B, K, n, C]

  def back(y):
    y = y.swapaxes(1, 2).reshape(batch, number, length, channels)
    y = jnp.sum(jnp.where(in_sequence[..., None], shift(y, back_at), 0), axis=1)    # [B, n, C]
    return jnp.where((segments > number)[..., None], jnp.nan, y)

  return rows.reshape(-1, length, channels).swapaxes(1, 2), in_sequence.any(axis=-1).reshape(-1), back
