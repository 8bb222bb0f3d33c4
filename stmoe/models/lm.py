"""A decoder-only language model: rotary positions, RMSNorm, any feed-forward layers."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.attention import attention as attention_lib
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import block
from stmoe.parts import cache as caches
from stmoe.parts import embed
from stmoe.parts import norm as norms
from stmoe.parts import rotary
from stmoe.parts import stack
from stmoe.parts import visible


class LM(nnx.Module):
  """Embedding, a causal stack, a head (the backbone of Llama, arXiv:2302.13971).

  Args:
    vocab_size, d_model: V and D.
    layers:       pattern of the stack, for example (('dm', 2),).
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: of the attention; head_dim is the width that rotary positions turn.
    num_kv_heads: heads of keys and values; None = as many as num_heads.
    attention:    recipe of the attention layers; None = `attention.Attention`.
    window:       see `visible.causal`; of blocks without a window of their own (`blocks.LETTER.window`).
    rotary_base:  base of the rotary angles.
    rotary_scaling: recipe of `parts/rotary_scaling`, or None.
    tie_embeddings: the head is the embedding transposed, over sqrt(D) if scale_head.
    head_bias:    the head adds a vector [V], initially 0, tied or not.
    norm, norm_epsilon: 'rms' or 'layer', with mean and bias (see `norm.KINDS`); epsilon of the norms.
    norm_place:   see `block.NORM_PLACES`.
    embed_factor: of the embedded tokens.
    residual_factor: of what every sub-layer adds to the stream.
    logits_divisor: of the logits. In Granite's releases they are `embedding_multiplier`,
      `residual_multiplier` and `logits_scaling`; `attention.Attention.scale` is their
      `attention_multiplier`.
    dropout_rate: after embedding, sub-layers and final norm, and on attention.
    init_scale:   variance scale of attention and untied head; layers have their own.
    dtype:        of activations; parameters, norms, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
    start_id:     what the first token follows.
    end_ids: what ends a text, None = the vocabulary's EOS.
    start_prompts: a prompt is read after start_id, as rows of training are. False: its own first token comes
      first, as with tokenizers that add none (OLMoE, Qwen).
  """

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               num_heads: ranges.Count, head_dim: ranges.Count, num_kv_heads: ranges.Count | None = None,
               attention: ranges.Named('attention', 'attention') | None = None,
               window: ranges.Count | None = None,
               rotary_base: ranges.Above1 = 10000.0,
               rotary_scaling: ranges.Named('rotary_scaling') | None = None,
               tie_embeddings: ranges.Flag = True, scale_head: ranges.Flag = True,
               head_bias: ranges.Flag = False, norm: ranges.Choice(*norms.KINDS) = 'rms',
               norm_epsilon: ranges.PartOf1 = 1e-6, norm_place: ranges.Choice(*block.NORM_PLACES) = 'input',
               embed_factor: ranges.Positive = 1.0, residual_factor: ranges.Positive = 1.0,
               logits_divisor: ranges.Positive = 1.0, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, dtype: ranges.Dtype = 'float32',
               scan_layers: ranges.Flag = True, remat: ranges.Choice(*kept.POLICIES) = 'elementwise',
               start_id: ranges.Natural = 0, end_ids: ranges.Ids | None = None,
               start_prompts: ranges.Flag = True, rngs):
    if head_dim % 2:
      raise UserError(f'head_dim {head_dim} is odd, and rotary positions turn pairs; '
                      f'nearest: {head_dim - 1}, {head_dim + 1}')
    self.embed = embed.Embed(vocab_size, d_model, factor=embed_factor, rngs=rngs)
    shared: dict[str, typing.Any] = dict(
        num_heads=num_heads, head_dim=head_dim, dropout_rate=dropout_rate, init_scale=init_scale)
    shared |= dict(num_kv_heads=num_kv_heads) if num_kv_heads else {}
    attention = attention or attention_lib.Attention
    if num_kv_heads and not lookup.takes(attention, 'num_kv_heads'):
      kind = getattr(attention, 'func', attention).__name__
      raise UserError(f'model.num_kv_heads={num_kv_heads}: {kind} has no fewer heads of keys and values; '
                      'nearest: model.num_kv_heads=None')
    attend = functools.partial(attention, **shared)
    self.decoder = stack.Stack(d_model, name='decoder', pattern=layers, blocks=blocks, attention=attend,
                               norm=functools.partial(norms.KINDS[norm], epsilon=norm_epsilon),
                               norm_place=norm_place, residual_factor=residual_factor,
                               dropout_rate=dropout_rate, scan_layers=scan_layers, remat=remat, windowed=True,
                               rngs=rngs)
    self.head = None if tie_embeddings else embed.Head(d_model, vocab_size, init_scale=init_scale,
                                                       use_bias=head_bias, rngs=rngs)
    self.head_bias = axes.param(nnx.initializers.zeros, (vocab_size,), 'vocab',
                                rngs=rngs) if tie_embeddings and head_bias else None
    self.vocab_size = vocab_size
    self.head_dim = head_dim
    self.rotary = functools.partial(rotary.table, head_dim=head_dim, base=rotary_base,
                                    scaling=rotary_scaling and rotary_scaling())
    jax.eval_shape(self.rotary, jnp.zeros((1, 1), jnp.int32))        # a scaling of another width is refused
    self.window = window
    self.windows = tuple(sorted(set(stack.windows(layers, blocks).values())))
    self.scale_head = scale_head
    self.logits_divisor = logits_divisor
    self.start_id = start_id
    self.end_ids = end_ids
    self.start_prompts = start_prompts
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None,
               alone: bool = False) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,T,V], aux: dict layer name -> Aux).

    Args:
      batch:  dict of i32[B,T]: decoder_input_tokens, decoder_segment_ids, decoder_positions;
        with decoder_causal_attention a prefix language model.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
      alone:  route every token by itself, as decoding does (see `moe.grouping`).
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    ctx = contract.Context.of_batch(batch, 'decoder', key=key, step=jnp.asarray(step),
                                    tokens=tokens['decoder'], vocab_size=self.vocab_size,
                                    train=train, causal=True, alone=alone)
    prefix = batch.get('decoder_causal_attention')
    mask = functools.partial(visible.causal, ctx.segments, prefix)
    seen = self._visible(mask, self.rotary(ctx.positions), causal=prefix is None)
    ctx = ctx.replace(visible=dict(attention=seen))
    x, aux = self.decoder(self.embed(ctx.ids, self.dtype), ctx)      # [B, T, D]
    return self.logits(x), aux                                       # [B, T, V]

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns f32[B,T,V] of the stack's output x [B,T,D]."""
    with jax.named_scope('head'):
      y = self.embed.logits(x, self.scale_head, self.head_bias) if self.head is None else self.head(x)
      return y if self.logits_divisor == 1 else y / self.logits_divisor

  def begin(self, batch: dict[str, jax.Array], length: int,
            key: jax.Array | None = None) -> tuple[jax.Array, caches.Cache]:
    """Returns (logits f32[B,V] of the token after each prompt, Cache with room for `length` more).

    Args:
      batch: dict of i32[B,T] as for `__call__`; a row is one prompt of at least one token, padded on the
        right.
      key:   PRNG key of all draws of routers, those for later tokens, too; None for no randomness.
    """
    segments = batch['decoder_segment_ids']
    cache = caches.empty(self.decoder, len(segments), segments.shape[1] + length, self.dtype)
    cache = cache.replace(given=cache.given | contract.of_rows(batch), key=key)
    x, cache = self.extend(cache.given | batch, cache)               # [B, T, D]
    last = jnp.take_along_axis(x, cache.positions[:, None, None] - 1, axis=1)      # [B, 1, D]
    return self.logits(last)[:, 0], cache

  def step(self, ids: jax.Array, real: jax.Array, cache: caches.Cache) -> tuple[jax.Array, caches.Cache]:
    """Returns (logits f32[B,V] of the token after ids i32[B], cache); rows not real bool[B] rest."""
    x, cache = self.extend(cache.batch('decoder', ids, real), cache)
    return self.logits(x)[:, 0], cache

  def extend(self, batch: dict[str, jax.Array], cache: caches.Cache) -> tuple[jax.Array, caches.Cache]:
    """Returns (x [B,T,D], cache) of the next tokens of every row, as `__call__` with alone=True has them."""
    ctx = contract.Context.of_batch(batch, 'decoder', key=cache.key, step=jnp.int32(0),
                                    tokens=self.count_tokens(batch)['decoder'],
                                    vocab_size=self.vocab_size, causal=True, alone=True)
    mask = functools.partial(visible.extended, ctx.segments, cache.write(ctx.segments), cache.slot,
                             batch.get('decoder_causal_attention'))
    seen = self._visible(mask, self.rotary(ctx.positions, room=cache.segments.shape[1]), slot=cache.slot)
    ctx = ctx.replace(visible=dict(attention=seen), earlier=cache.before(ctx.ids, ctx.positions))
    x, layers = self.decoder.extend(self.embed(ctx.ids, self.dtype), ctx, cache.layers)
    return x, cache.advance(layers, ctx.ids, ctx.segments)

  def _visible(self, mask, turn, **fields):
    """What attention sees, where mask(window=) -> bool[B,1,T,K]."""
    return visible.Visible(mask=mask(window=self.window), windows={w: mask(window=w) for w in self.windows},
                           turn=turn, **fields)

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of each stack in `batch`: dict stack name -> f32[]."""
    return {'decoder': jnp.sum(batch['decoder_segment_ids'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.decoder]
