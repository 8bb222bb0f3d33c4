"""A bidirectional encoder with a span head: the backbone of DistilBERT (arXiv:1910.01108), any layers."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import embed
from stmoe.parts import norm
from stmoe.parts import stack
from stmoe.parts import visible

HIDDEN = -1e9                      # logit of a position that holds no token


class Encoder(nnx.Module):
  """Post-norm blocks with biases over normalised sums of token and learned position vectors.

  DistilBERT has dense layers with activation='gelu' and use_bias=True. Predictions of a row are two
  distributions over its positions, of the start and of the end of an answer.

  Args:
    vocab_size, d_model: V and D.
    encoder:      pattern of the stack, for example (('d', 6),).
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: of the attention.
    length:       positions that are learned, the most that a row has.
    head:         recipe of a file of `heads`.
    epsilon:      of the norms.
    dropout_rate: after embedding, every sub-layer and the last block, and on attention.
    init_scale:   variance scale of the attention; layers have their own.
    dtype:        of activations; parameters, norms, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
  Differs: vectors of tokens and positions are initially N(0, 1); the norm makes of these vectors what the
  norm makes of BERT's N(0, 0.02). GELU is the tanh approximation; dropout has one mask per sequence.
  """

  targets = 'positions'            # what is predicted are places of the row, no ids

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, encoder: ranges.Pattern, blocks,
               num_heads: ranges.Count, head_dim: ranges.Count, length: ranges.Count,
               head: ranges.Named('head'), epsilon: ranges.PartOf1 = 1e-12,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               dtype: ranges.Dtype = 'float32', scan_layers: ranges.Flag = True,
               remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    make_norm = functools.partial(norm.LayerNorm, epsilon=epsilon)
    attend = functools.partial(attention.Attention, num_heads=num_heads, head_dim=head_dim, use_bias=True,
                               dropout_rate=dropout_rate, init_scale=init_scale)
    self.embed = embed.Embed(vocab_size, d_model, rngs=rngs)
    self.positions = axes.param(nnx.initializers.normal(1.0), (1, length, d_model), 'unmodeled', 'length',
                                'embed', rngs=rngs)
    self.norm = make_norm(d_model, rngs=rngs)
    self.encoder = stack.Stack(d_model, name='encoder', pattern=encoder, blocks=blocks, attention=attend,
                               norm=make_norm, norm_place='sum', dropout_rate=dropout_rate,
                               scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.head = head(d_model, length=length, rngs=rngs)
    self.vocab_size = vocab_size
    self.length = length
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,2,T], aux: dict layer name -> Aux, the head's last, as 'head').

    Args:
      batch:  dict of i32[B,T]: encoder_ input_tokens, segment_ids, positions; one text a row.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisors of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    ctx = contract.Context.of_batch(batch, 'encoder', key=key, step=jnp.asarray(step),
                                    tokens=tokens['encoder'], vocab_size=self.vocab_size, train=train)
    length = ctx.ids.shape[1]
    if length > self.length:
      raise UserError(f'model.length={self.length}, but rows have data.inputs_length={length} tokens; '
                      f'nearest: model.length={length}')
    seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments))
    x = self.embed(ctx.ids) + jnp.take(self.positions[...][0], ctx.positions, axis=0)
    x, aux = self.encoder(self.norm(x).astype(self.dtype), ctx.replace(visible=dict(attention=seen)))
    with jax.named_scope('head'):
      of_rows = ctx.replace(key=key, tokens=tokens['head']).fold('head')
      logits, report, _ = self.head(x, of_rows, {})                  # [B, T, 2]
    logits = jnp.where(ctx.mask[..., None], logits, HIDDEN)
    return logits.swapaxes(1, 2), aux | contract.keyed('head', report)                         # [B, 2, T]

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens in `batch`, and the rows with any tokens: dict(encoder=f32[], head=f32[])."""
    real = batch['encoder_segment_ids'] > 0
    return dict(encoder=jnp.sum(real, dtype=jnp.float32), head=jnp.sum(real.any(1), dtype=jnp.float32))

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.encoder]
