"""A block of sub-layers, and the unit of blocks that a stack repeats."""

from flax import nnx
import jax

from stmoe.core import noise
from stmoe.parts import norm as norms


class Block(nnx.Module):
  """Residual self-attention, cross-attention where there is one, feed-forward layer, each with its norm.

  Args:
    d_model:   D.
    layer:     recipe of a feed-forward layer.
    attention: recipe of the self-attention; None for a feed-forward block (the extra dense
      layer beside a sparse one of ST-MoE, arXiv:2202.08906, section 5).
    cross:     recipe of the cross-attention of decoders, or None.
    norm:      recipe of the norms.
    layer_norm: whether `layer` gets a normalised input; not, where it acts on the residual
      stream itself (BASE layers, arXiv:2103.16716). Pre-norm only.
    post_norm: norm(x + f(x)) instead of x + f(norm(x)).
    dropout_rate: after each sub-layer, one mask per sequence (T5).
  """

  def __init__(self, d_model, *, layer, attention=None, cross=None, norm=norms.RMSNorm, layer_norm=True,
               post_norm=False, dropout_rate=0.0, rngs):
    self.attention = attention and attention(d_model, rngs=rngs)
    self.attention_norm = attention and norm(d_model, rngs=rngs)
    self.cross = cross and cross(d_model, rngs=rngs)
    self.cross_norm = cross and norm(d_model, rngs=rngs)
    self.layer = layer(d_model, rngs=rngs)
    self.layer_norm = norm(d_model, rngs=rngs) if layer_norm or post_norm else None
    self.post_norm = post_norm
    self.dropout_rate = dropout_rate

  def __call__(self, x, ctx, carry, visible, memory=None):
    """Returns (x [B,T,D], Aux or None, carry); `visible` and `memory` are `visible.Visible`."""
    key = lambda name: ctx.fold(name).key if ctx.train else None
    return self._apply(x, ctx, carry, lambda x: self.attention(x, visible, key('attention')),
                       lambda x: self.cross(x, memory, key('cross')))

  def extend(self, x, ctx, carry, visible, memory, cache, remembered):
    """Returns (x [B,T,D], carry, cache) for the next tokens; see `attention.Attention.extend`, `recall`."""
    def attend(x):
      nonlocal cache
      y, cache = self.attention.extend(x, visible, cache)
      return y

    x, _, carry = self._apply(x, ctx, carry, attend, lambda x: self.cross.recall(x, memory, remembered))
    return x, carry, cache

  def _apply(self, x, ctx, carry, attend, cross):
    key = lambda name: ctx.fold(name).key if ctx.train else None
    drop = lambda y, name: noise.dropout(y, self.dropout_rate, key(name), broadcast_dims=(-2,))
    before = lambda norm, x: x if norm is None or self.post_norm else norm(x)
    after = lambda norm, x: norm(x) if self.post_norm else x
    if self.attention is not None:
      with jax.named_scope('attention'):
        y = attend(before(self.attention_norm, x))
        x = after(self.attention_norm, x + drop(y, 'attention_out'))
    if self.cross is not None:
      with jax.named_scope('cross_attention'):
        y = cross(before(self.cross_norm, x))
        x = after(self.cross_norm, x + drop(y, 'cross_out'))
    with jax.named_scope('layer'):
      y, aux, carry = self.layer(before(self.layer_norm, x), ctx.fold('layer'), carry)
    return after(self.layer_norm, x + drop(y, 'layer_out')), aux, carry


class Unit(nnx.Module):
  """The blocks of one repetition of a pattern's letters."""

  def __init__(self, recipes, d_model, *, rngs):
    self.blocks = nnx.List([recipe(d_model, rngs=rngs) for recipe in recipes])

  def __call__(self, x, ctx, carry, first, visible, memory):
    """Returns (x, carry, aux: dict place in the unit -> Aux); `first` is the first block's index."""
    reports = {}
    for place, block in enumerate(self.blocks):
      key = None if ctx.key is None else jax.random.fold_in(ctx.key, first + place)
      x, aux, carry = block(x, ctx.replace(key=key), carry, visible, memory)
      if aux is not None:
        reports[place] = aux
    return x, carry, reports

  def extend(self, x, ctx, carry, visible, memory, cache, remembered):
    """Returns (x, carry, cache); `cache` and `remembered` are dicts place in the unit -> those of a block."""
    new = {}
    for place, block in enumerate(self.blocks):
      x, carry, new[place] = block.extend(x, ctx, carry, visible, memory, cache.get(place),
                                          remembered.get(place))
    return x, carry, {place: new[place] for place in cache}

  def init_cache(self, batch, length, dtype):
    """Returns dict place in the unit -> empty cache, of blocks that attend."""
    return {place: block.attention.init_cache(batch, length, dtype)
            for place, block in enumerate(self.blocks) if block.attention is not None}

  def remember(self, memory):
    """Returns dict place in the unit -> keys and values of memory [B,K,D], of blocks that attend to it."""
    return {place: block.cross.remember(memory)
            for place, block in enumerate(self.blocks) if block.cross is not None}
