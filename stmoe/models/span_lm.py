"""The language model of MomentumSMoE: post-norm blocks whose attention looks a fixed span back."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.attention import span_attention
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import embed
from stmoe.parts import norm
from stmoe.parts import stack


class SpanLM(nnx.Module):
  """Embedding, a causal post-norm stack, a head with bias (arXiv:2410.14574, released code).

  A block is h = LN(h + attention(h)), then h = LN(h + layer(h)). One table of relative positions is
  shared by all layers and heads. There is no final norm.

  Args:
    vocab_size, d_model: V and D.
    layers:       pattern of the stack, for example (('m', 6),) or (('md', 6),).
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: H and P; H P is D in the paper.
    span:         W, positions that a token looks back.
    dropout_rate: of attention probabilities; layers have their own, and nothing else is dropped.
    init_scale:   variance scale of attention and head.
    dtype:        of activations; parameters, norms, states, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
  Differs: rows are independent; the released models keep the layers' inputs of the block before as a
    cache, also in training (`span_attention.Visible.history` here). The table adds H x W products a token
    and layer that `analysis.flops` does not count.
  """

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               num_heads: ranges.Count, head_dim: ranges.Count, span: ranges.Count,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1 / 3,
               dtype: ranges.Dtype = 'float32', scan_layers: ranges.Flag = True,
               remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    if span < 1:
      raise UserError(f'model.span={span}: a token looks back at least 1 position')
    self.embed = embed.Embed(vocab_size, d_model, rngs=rngs)
    self.pe = axes.param(nnx.initializers.normal(1.0), (head_dim, span), 'kv', 'relpos_buckets', rngs=rngs)
    attend = functools.partial(span_attention.SpanAttention, num_heads=num_heads, head_dim=head_dim,
                               dropout_rate=dropout_rate, init_scale=init_scale)
    self.decoder = stack.Stack(d_model, name='decoder', pattern=layers, blocks=blocks, attention=attend,
                               norm=norm.LayerNorm, norm_place='sum', scan_layers=scan_layers, remat=remat,
                               rngs=rngs)
    self.head = embed.Head(d_model, vocab_size, init_scale=init_scale, use_bias=True, rngs=rngs)
    self.vocab_size = vocab_size
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,T,V], aux: dict layer name -> Aux).

    Args:
      batch:  dict of i32[B,T]: decoder_input_tokens, decoder_segment_ids, decoder_positions.
      key:    PRNG key, or None for no randomness.
      train:  dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    if 'decoder_causal_attention' in batch:
      raise UserError('model span_lm looks back only, a prefix cannot be seen in both directions; '
                      "nearest: data.objective='lm', or model.name='lm'")
    tokens = self.count_tokens(batch) if tokens is None else tokens
    ctx = contract.Context.of_batch(batch, 'decoder', key=key, step=jnp.asarray(step),
                                    tokens=tokens['decoder'], vocab_size=self.vocab_size,
                                    train=train, causal=True)
    ctx = ctx.replace(visible=dict(attention=span_attention.Visible(pe=self.pe[...], segments=ctx.segments)))
    x, aux = self.decoder(self.embed(ctx.ids, self.dtype), ctx)      # [B, T, D]
    with jax.named_scope('head'):
      return self.head(x), aux                                       # [B, T, V]

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of each stack in `batch`: dict stack name -> f32[]."""
    return {'decoder': jnp.sum(batch['decoder_segment_ids'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.decoder]
