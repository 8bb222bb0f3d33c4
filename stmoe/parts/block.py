"""A block of sub-layers, and the unit of blocks that a stack repeats.

Every sub-layer, attention or feed-forward, is called with (x [B,T,D], Context, carry) and returns
(y [B,T,D], aux, carry). `aux` is None, an `Aux`, or a dict of `Aux` by the parts that the sub-layer names in
`reports`. What a sub-layer sees is `Context.visible`; its cache, if any, is `carry[contract.CACHE]`.
"""

import types
import typing

from flax import nnx
import jax

from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import hidden
from stmoe.core import noise
from stmoe.errors import UserError
from stmoe.parts import adapting
from stmoe.parts import norm as norms

# The sub-layers in their order -> (the end of the names that they report under, their name in profiles).
SUB_LAYERS = {'attention': ('.attention', 'attention'), 'cross': ('.cross', 'cross_attention'),
              'layer': ('', 'layer')}
# Where the norm of a sub-layer f is: x + f(norm(x)), norm(x + f(x)) (the Transformer, arXiv:1706.03762), or
# x + norm(f(x)) (OLMo 2, arXiv:2501.00656, section 3.2).
NORM_PLACES = ('input', 'sum', 'output')


class Block(nnx.Module):
  """Residual self-attention, cross-attention where there is one, feed-forward layer, each with its norm.

  Args:
    d_model:   D.
    layer:     recipe of a feed-forward layer.
    attention: recipe of the self-attention; None for a feed-forward block (the extra dense
      layer beside a sparse one of ST-MoE, arXiv:2202.08906, section 5).
    cross:     recipe of the cross-attention of decoders, or None.
    norm:      recipe of the norms.
    layer_norm: whether `layer` gets a normalised input. It does not where it acts on the residual
      stream itself (BASE layers, arXiv:2103.16716). Nor has a sub-layer that `normalizes`. At the place
      'input' only.
    norm_place: one of NORM_PLACES.
    residual_factor: r of x + r f(norm(x)), for every sub-layer f and every place of the norm.
    window:    of the self-attention, where not that of the model; see `visible.causal`.
    dropout_rate: after each sub-layer, one mask per sequence (T5).
  """

  def __init__(self, d_model: int, *, layer, attention=None, cross=None, norm=norms.RMSNorm, layer_norm=True,
               norm_place='input', residual_factor=1.0, window=None, dropout_rate=0.0, rngs):
    own = lambda layer: contract.offered(layer, 'normalizes') and norm_place == 'input'
    before = lambda layer: None if own(layer) else norm(d_model, rngs=rngs)
    self.attention = attention and checked.made(attention, d_model, rngs=rngs)
    self.attention_norm = attention and before(self.attention)
    self.cross = cross and cross(d_model, rngs=rngs)
    self.cross_norm = cross and norm(d_model, rngs=rngs)
    self.layer = checked.made(layer, d_model, rngs=rngs)
    self.layer_norm = before(self.layer) if layer_norm or norm_place != 'input' else None
    self.norm_place = norm_place
    self.residual_factor = residual_factor
    self.window = window
    self.dropout_rate = dropout_rate

  def sub_layers(self) -> dict[str, contract.SubLayer]:
    """Returns dict name -> sub-layer, in their order, without absent sub-layers."""
    return {name: getattr(self, name) for name in SUB_LAYERS if getattr(self, name) is not None}

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry).

    Args:
      ctx:   `visible` is a dict name of a sub-layer -> what it sees.
      carry: memory across layers; in decoding also the caches, dict name of a sub-layer -> its cache.
    """
    reports: dict[str, contract.Aux] = {}
    for name in self.sub_layers():
      with jax.named_scope(SUB_LAYERS[name][1]):
        y, reported, carry = self.run(name, self._before(name, x), ctx, carry)
        x = self._after(name, x, y, ctx)
      reports |= reported
    return x, reports, carry

  def run(self, name: str, x: jax.Array, ctx: contract.Context,
          carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (y [B,T,D], dict end of a name -> Aux, carry) of the sub-layer `name` alone.

    Args:
      x: [B,T,D] its input, after the norm.
      ctx, carry: of the block.
    """
    layer, (carry, caches) = getattr(self, name), contract.apart(carry)
    seen = _of(ctx.visible, name)
    if name == 'attention' and self.window is not None:
      seen = seen.within(self.window)
    own_ctx = ctx.fold(name).replace(visible=seen, edit=None)
    drawn, own_carry = adapting.drawn(layer, own_ctx), contract.joined(carry, _of(caches, name))
    y, aux, after = checked.answer(layer, x, own_ctx, own_carry, drawn)
    y = y if ctx.edit is None else ctx.edit(SUB_LAYERS[name][0], y)
    carry, cache = contract.apart(after)
    caches = caches if cache is None else caches | {name: cache}
    return y, contract.keyed(SUB_LAYERS[name][0], _declared(layer, aux)), contract.joined(carry, caches)

  def parts(self) -> dict:
    """Returns dict end of a name -> the part that would report under it, the feed-forward layer first."""
    reporting = {'': self.layer}
    for name, layer in self.sub_layers().items():
      end, _ = SUB_LAYERS[name]
      reporting |= {f'{end}.{part}': getattr(layer, part) for part in contract.offered(layer, 'reports')} or {
          end: layer}
    return reporting

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict:
    """Returns the empty caches of self-attention, dict name of the sub-layer -> cache."""
    return {} if self.attention is None else dict(attention=self.attention.init_cache(batch, length, dtype))

  def remember(self, memory: jax.Array) -> dict:
    """Returns the caches of cross-attention to memory [B,K,D], dict name of the sub-layer -> cache."""
    return {} if self.cross is None else dict(cross=self.cross.remember(memory))

  def added(self, name: str, x: jax.Array, y: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns x + r y [B,T,D], in training after dropout of y, the output of the sub-layer `name`."""
    key = ctx.fold(f'{name}_out').key if ctx.train else None
    y = y if self.residual_factor == 1 else y * self.residual_factor
    return x + noise.dropout(y, self.dropout_rate, key, broadcast_dims=(-2,))

  def _before(self, name, x):
    norm = getattr(self, f'{name}_norm')
    return x if norm is None or self.norm_place != 'input' else norm(x)

  def _after(self, name, x, y, ctx):
    norm = getattr(self, f'{name}_norm')
    x = self.added(name, x, norm(y) if self.norm_place == 'output' else y, ctx)
    return norm(x) if self.norm_place == 'sum' else x


def _of(values, name):
  """What the dict `values` has for `name`, or None; `values` itself may be None."""
  return None if values is None else values.get(name)


def _declared(layer, aux):
  """`aux`, if its parts are the parts that `layer` declares; raises UserError otherwise."""
  declared = contract.offered(layer, 'reports')
  named = sorted(aux) if isinstance(aux, dict) else []
  if aux is not None and named != sorted(declared):
    raise UserError(f'{checked.file(layer)}: it reported of the parts {", ".join(named) or "none"}; wanted: '
                    f'{", ".join(declared) or "one Aux"}, as its attribute `reports` says')
  return aux


class Around(nnx.Module):
  """What a block around the block `block` shows of it; subclasses say how the block runs."""

  block: typing.Any

  @property
  def layer(self) -> contract.SubLayer:
    """The feed-forward layer of the block."""
    return self.block.layer

  def sub_layers(self) -> dict[str, contract.SubLayer]:
    """Returns dict name -> sub-layer of the block."""
    return self.block.sub_layers()

  def parts(self) -> dict:
    """Returns dict end of a name -> the part that reports under it, of the block."""
    return self.block.parts()

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict:
    """Returns the empty caches of the block, arrays [B,K,...]."""
    return self.block.init_cache(batch, length, dtype)

  def remember(self, memory: jax.Array) -> dict:
    """Returns the caches of cross-attention to memory [B,K,D]."""
    return self.block.remember(memory)


class Unit(nnx.Module):
  """The blocks of one repetition of a pattern's letters."""

  def __init__(self, recipes: typing.Sequence[typing.Callable], d_model: int, *, rngs):
    self.blocks = nnx.List([checked.made(recipe, d_model, rngs=rngs) for recipe in recipes])

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry, first: jax.Array,
               shown: typing.Collection[int] = (),
               edits: typing.Mapping[int, list] = types.MappingProxyType({}),
               ) -> tuple[jax.Array, dict[int, dict], contract.Carry]:
    """Returns (x, aux: dict place in the unit -> aux of the block there, carry).

    Args:
      carry: in decoding also the caches, dict place in the unit -> the caches of the block there.
      first: i32[] index of the first block in its stack.
      shown: places of the blocks that also report the state x [B,T,D] after them, as `hidden.END`.
      edits: dict place in the unit -> the `hidden.Edit`s of the blocks there, of all repetitions.
    """
    carry, caches = contract.apart(carry)
    reports: dict[int, dict] = {}
    for place, block in enumerate(self.blocks):
      key = None if ctx.key is None else jax.random.fold_in(ctx.key, first + place)
      change = hidden.changer(edits.get(place, ()), first + place)
      own_ctx, own_carry = ctx.replace(key=key, edit=change), contract.joined(carry, _of(caches, place))
      x, aux, after = checked.answer(block, x, own_ctx, own_carry)
      x = x if change is None else change(hidden.END, x)
      carry, cache = contract.apart(after)
      caches = caches if cache is None else caches | {place: cache}
      report = aux | ({hidden.END: x} if place in shown else {})
      reports |= {place: report} if report else {}
    return x, reports, contract.joined(carry, caches)

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict:
    """Returns dict place in the unit -> empty caches of its block."""
    return {place: block.init_cache(batch, length, dtype) for place, block in enumerate(self.blocks)}

  def remember(self, memory: jax.Array) -> dict:
    """Returns dict place in the unit -> caches of its block of memory [B,K,D]."""
    return {place: block.remember(memory) for place, block in enumerate(self.blocks)}
