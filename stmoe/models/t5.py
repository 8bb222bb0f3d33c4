"""The T5 encoder-decoder (Raffel et al., 2019, arXiv:1910.10683), 1.1 by default."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import cache as caches
from stmoe.parts import embed
from stmoe.parts import norm as norms
from stmoe.parts import relpos
from stmoe.parts import sinusoids
from stmoe.parts import stack
from stmoe.parts import visible

IMPOSSIBLE = -1e9                        # the logit of a token that is not to be chosen


class T5(nnx.Module):
  """Pre-norm encoder-decoder with relative position bias, or with sinusoidal positions.

  T5 1.1 is the default here plus dense layers with activation='gelu', gated=True; T5 1.0
  is tie_embeddings=True plus activation='relu'. NLLB (arXiv:2207.04672) is tie_embeddings=True and, besides,
  first_position=2, norm='layer', norm_epsilon=1e-5, scaled=True, use_bias=True, embed_factor=sqrt(D) and
  scale_head=False.

  Args:
    vocab_size, d_model: V and D.
    encoder, decoder: patterns of the stacks, for example (('dm', 6),).
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: H and P; H * P need not be D.
    num_buckets, max_distance: of the relative position bias.
    first_position: number of the first of the sinusoidal positions (`parts/sinusoids`), which the embedded
      tokens then get instead of the bias; None = the bias.
    embed_factor: of the embedded tokens.
    tie_embeddings: the head is the embedding transposed, over sqrt(D) if scale_head.
    scaled:       attention divides its logits by sqrt(P), as the Transformer does and T5 does not; see
      `attention.Attention`.
    use_bias:     with biases of all projections of attention.
    norm, norm_epsilon: 'rms' or 'layer', with mean and bias (see `norm.KINDS`); epsilon of the norms.
    dropout_rate: after embedding, sub-layers and final norms, and on attention.
    init_scale:   variance scale of attention, relative bias and untied head; layers have their own.
    dtype:        of activations; parameters, norms, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
    start_id:     what the first token follows.
    end_ids: what ends a text, None = the vocabulary's EOS.
    forced_id:    the first token of a generated text, whatever the logits are: the language of a translation
      (NLLB); None = what the logits say.
  """

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, encoder: ranges.Pattern,
               decoder: ranges.Pattern, blocks, num_heads: ranges.Count, head_dim: ranges.Count,
               num_buckets: ranges.Whole(4) = 32, max_distance: ranges.Count = 128,
               tie_embeddings: ranges.Flag = False, scale_head: ranges.Flag = True,
               scaled: ranges.Flag = False, first_position: ranges.Natural | None = None,
               embed_factor: ranges.Positive = 1.0, use_bias: ranges.Flag = False,
               norm: ranges.Choice(*norms.KINDS) = 'rms', norm_epsilon: ranges.PartOf1 = 1e-6,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               dtype: ranges.Dtype = 'float32', scan_layers: ranges.Flag = True,
               remat: ranges.Choice(*kept.POLICIES) = 'elementwise',
               start_id: ranges.Natural = 0, end_ids: ranges.Ids | None = None,
               forced_id: ranges.Natural | None = None, rngs):
    if max_distance <= num_buckets // 2:
      raise UserError(f'model.max_distance={max_distance}: half of model.num_buckets={num_buckets} are exact '
                      f'distances, and it is beyond them; nearest: {num_buckets // 2 + 1}')
    if forced_id is not None and forced_id >= vocab_size:
      raise UserError(f'model.forced_id={forced_id} is no id of vocab_size={vocab_size}; nearest: '
                      f'{vocab_size - 1}')
    if first_position is not None and (d_model % 2 or d_model < 4):
      raise UserError(f'model.d_model={d_model}: sinusoidal positions need an even number of at least 4; '
                      f'nearest: {max(d_model + 1, 4)}')
    attend = functools.partial(attention.Attention, num_heads=num_heads, head_dim=head_dim, scaled=scaled,
                               use_bias=use_bias, dropout_rate=dropout_rate, init_scale=init_scale)
    bias = functools.partial(relpos.RelativeBias, num_heads, num_buckets=num_buckets,
                             max_distance=max_distance, init_scale=init_scale, rngs=rngs)
    make = functools.partial(stack.Stack, d_model, blocks=blocks, attention=attend, dropout_rate=dropout_rate,
                             norm=functools.partial(norms.KINDS[norm], epsilon=norm_epsilon),
                             scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.embed = embed.Embed(vocab_size, d_model, factor=embed_factor, rngs=rngs)
    relative = first_position is None
    self.encoder_bias = bias(bidirectional=True) if relative else None
    self.decoder_bias = bias(bidirectional=False) if relative else None
    self.encoder = make(name='encoder', pattern=encoder)
    self.decoder = make(name='decoder', pattern=decoder, cross=attend)
    self.head = None if tie_embeddings else embed.Head(d_model, vocab_size, init_scale=init_scale, rngs=rngs)
    self.vocab_size = vocab_size
    self.scale_head = scale_head
    self.first_position = first_position
    self.start_id = start_id
    self.end_ids = end_ids
    self.forced_id = forced_id
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None,
               alone: bool = False) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,T,V], aux: dict layer name -> Aux, the encoder's first).

    Args:
      batch:  dict of i32[B,T], for both stacks (encoder_, decoder_): input_tokens,
        segment_ids, positions.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisors of the router losses; None = of this batch.
      alone:  route every token by itself, as decoding does (see `moe.grouping`); in the encoder only where
        all its layers can.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    make = functools.partial(self._context, batch, tokens, step=jnp.asarray(step), key=key, train=train)
    memory, aux = self.encode(make('encoder', alone=alone and self.encoder.undecodable() is None))
    decoder = make('decoder', causal=True, alone=alone)
    logits, decoder_aux = self.decode(decoder, memory, batch['encoder_segment_ids'])
    return logits, aux | decoder_aux

  def encode(self, ctx: contract.Context) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (memory [B,K,D], aux) of the encoder for the tokens of `ctx`."""
    length = ctx.ids.shape[1]
    seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments),
                           bias=_bias(self.encoder_bias, length, length))
    return self.encoder(self._embedded(ctx), ctx.replace(visible=dict(attention=seen)))

  def decode(self, ctx: contract.Context, memory: jax.Array,
             memory_segments: jax.Array) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,T,V], aux) of the decoder over memory [B,K,D] with segments i32[B,K]."""
    length = ctx.ids.shape[1]
    seen = visible.Visible(mask=visible.causal(ctx.segments), bias=_bias(self.decoder_bias, length, length))
    source = visible.Visible(mask=visible.same_segment(ctx.segments, memory_segments), memory=memory)
    ctx = ctx.replace(visible=dict(attention=seen, cross=source))
    x, aux = self.decoder(self._embedded(ctx), ctx)
    return self.logits(x), aux                                       # [B, T, V]

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns f32[B,T,V] of the decoder's output x [B,T,D]."""
    with jax.named_scope('head'):
      return self.embed.logits(x, self.scale_head) if self.head is None else self.head(x)

  def begin(self, batch: dict[str, jax.Array], length: int,
            key: jax.Array | None = None) -> tuple[jax.Array, caches.Cache]:
    """Returns (logits f32[B,V] of each row's first token, Cache with room for `length` tokens).

    Keys and values of cross-attention are computed here, once. The first token is what follows `start_id`.
    With a `forced_id` all other logits are so low that no strategy chooses them.

    Args:
      batch: dict of i32[B,K]: encoder_ input_tokens, segment_ids, positions; a row is one source.
      key:   PRNG key of all draws of routers, those for later tokens, too; None for no randomness.
    """
    segments = batch['encoder_segment_ids']
    tokens = dict(encoder=jnp.sum(segments > 0, dtype=jnp.float32))
    alone = self.encoder.undecodable() is None
    memory, _ = self.encode(self._context(batch, tokens, 'encoder', key=key, alone=alone))
    cache = caches.empty(self.decoder, len(segments), length + 1, self.dtype)
    cache = cache.replace(memory=self.decoder.remember(memory), memory_segments=segments,
                          given=cache.given | contract.of_rows(batch), key=key)
    start = jnp.full(len(segments), self.start_id, jnp.int32)
    logits, cache = self.step(start, jnp.ones(len(segments), bool), cache)
    if self.forced_id is None:
      return logits, cache
    forced = jnp.arange(self.vocab_size) == self.forced_id           # [V]
    return jnp.where(forced, logits, IMPOSSIBLE), cache

  def step(self, ids: jax.Array, real: jax.Array, cache: caches.Cache) -> tuple[jax.Array, caches.Cache]:
    """Returns (logits f32[B,V] of the token after ids i32[B], cache); rows not real bool[B] rest."""
    ctx = self._context(cache.batch('decoder', ids, real), dict(decoder=jnp.sum(real, dtype=jnp.float32)),
                        'decoder', key=cache.key, causal=True, alone=True)
    assert cache.memory_segments is not None                         # `begin` made it
    segments = ctx.segments                                          # [B, 1]
    places = cache.segments.shape[1]                                 # a row's places are its positions
    seen = visible.Visible(mask=visible.extended(segments, cache.write(segments), cache.slot),
                           bias=_bias(self.decoder_bias, 1, places, cache.slot), slot=cache.slot)
    source = visible.Visible(mask=(cache.memory_segments > 0)[:, None, None])
    ctx = ctx.replace(visible=dict(attention=seen, cross=source),
                      earlier=cache.before(ctx.ids, ctx.positions))
    x, layers = self.decoder.extend(self._embedded(ctx), ctx, cache.layers, cache.memory)
    return self.logits(x)[:, 0], cache.advance(layers, ctx.ids, segments)

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of each stack in `batch`: dict stack name -> f32[]."""
    return {name: jnp.sum(batch[f'{name}_segment_ids'] > 0, dtype=jnp.float32)
            for name in ('encoder', 'decoder')}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks, encoder first."""
    return [self.encoder, self.decoder]

  def _embedded(self, ctx):
    """[B,T,D], the vectors of the tokens of `ctx`, with their positions where these are sinusoidal."""
    x = self.embed(ctx.ids, self.dtype)                              # [B, T, D]
    if self.first_position is None:
      return x
    return x + sinusoids.vectors(ctx.positions + self.first_position, x.shape[-1]).astype(x.dtype)

  def _context(self, batch, tokens, name, step=0, **fields):
    """The Context of the stack called `name`."""
    return contract.Context.of_batch(batch, name, tokens=tokens[name], step=jnp.asarray(step),
                                     vocab_size=self.vocab_size, **fields)


def _bias(bias, *where):
  """The relative position bias of `where`, or None of a model without one."""
  return None if bias is None else bias(*where)
