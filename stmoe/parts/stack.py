"""A stack of blocks from a layer pattern: scans over units, the carry, Aux, rematerialisation.

`(('dm', 6),)` is a unit of two blocks, made by the recipes of letters d and m, repeated
six times: one `jax.lax.scan` over arrays with a leading axis of 6. `(('d', 1), ('m', 5))`
is two scans. With `scan_layers=False` the same units run in a Python loop; both forms
draw the same randomness, because a layer's key depends only on its place in the stack.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import state
from stmoe.core import noise
from stmoe.parts import block as block_lib
from stmoe.parts import norm as norms

# What the forward keeps for the backward; the rest of a unit is computed again.
REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_saveable,
    'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
  """Blocks in the order of a pattern, then a final norm; dropout before and after.

  Args:
    d_model: D.
    name:    'encoder' or 'decoder'; layers report as name_00, name_01, ...
    pattern: tuple of (letters, repeats).
    blocks:  mapping letter -> dict(layer=..., fields of the layer); `attention=False` leaves attention
      out of a block, `norm=False` the norm before its layer.
    attention, cross: recipes of the attention layers; None where there is none.
    norm:    recipe of the norms.
    post_norm: norms after the sub-layers instead of before them, and no final one.
    dropout_rate: at both ends and after every sub-layer.
    remat:   a key of REMAT, applied to each unit.
  """

  def __init__(self, d_model, *, name, pattern, blocks, attention=None, cross=None, norm=norms.RMSNorm,
               post_norm=False, dropout_rate=0.0, scan_layers=True, remat='none', rngs):
    if remat not in REMAT:
      raise errors.UserError(f'no remat policy is called {remat!r}{errors.nearest(remat, REMAT)}'
                             f' (there are: {", ".join(REMAT)})')
    check_pattern(name, pattern, blocks)
    self.name = name
    self.pattern = tuple((letters, repeats) for letters, repeats in pattern)
    self.scan_layers = scan_layers
    self.remat = remat
    self.dropout_rate = dropout_rate
    make = functools.partial(_block, attention=attention, cross=cross, norm=norm, post_norm=post_norm,
                             dropout_rate=dropout_rate)
    self.segments = nnx.List([
        _units([make(blocks[letter]) for letter in letters], d_model, repeats, scan_layers, rngs)
        for letters, repeats in self.pattern])
    self.norm = None if post_norm else norm(d_model, rngs=rngs)

  def __call__(self, x, ctx, visible, memory=None):
    """Returns (x [B,T,D], aux: dict layer name -> Aux in layer order).

    Args:
      x:       [B,T,D] embedded tokens.
      ctx:     Context of this stack.
      visible: what self-attention sees.
      memory:  what cross-attention sees, or None.
    """
    key = lambda name: ctx.fold(name).key if ctx.train else None
    x = noise.dropout(x, self.dropout_rate, key('input'), broadcast_dims=(-2,))
    carry, reports, first = self.init_carry(x), {}, 0
    for (letters, repeats), units in zip(self.pattern, self.segments):
      run = self._scan if self.scan_layers else self._loop
      x, carry, aux = run(units, repeats, (x, carry), ctx, first, len(letters), visible, memory)
      reports |= aux
      first += repeats * len(letters)
    x = x if self.norm is None else self.norm(x)
    x = noise.dropout(x, self.dropout_rate, key('output'), broadcast_dims=(-2,))
    return x, {f'{self.name}_{index:02d}': reports[index] for index in sorted(reports)}

  def extend(self, x, ctx, visible, cache, memory=None, remembered=None):
    """Returns (x [B,T,D], cache) for the next tokens of every row, evaluated.

    Args:
      x, ctx:     of the tokens alone.
      visible:    what they see of the cache, with its slot.
      cache:      of `init_cache`: every array is [L,B,...].
      memory, remembered: what cross-attention sees, and its keys and values from `remember`.
    """
    carry, caches = self.init_carry(x), []
    remembered = remembered or [{} for _ in self.pattern]
    for units, before, known in zip(self.segments, cache, remembered):
      def body(state, layer):
        unit, before, known = layer
        x, carry, after = unit.extend(state[0], ctx, state[1], visible, memory, before, known)
        return (x, carry), after
      run = jax.lax.scan if self.scan_layers else _loop_over
      (x, carry), after = run(body, (x, carry), (units, before, known))
      caches.append(after)
    return x if self.norm is None else self.norm(x), caches

  def init_cache(self, batch, length, dtype):
    """Returns the empty cache of `batch` rows of `length` tokens: per segment, arrays [L,B,K,...]."""
    stacked = lambda repeats: lambda a: jnp.broadcast_to(a, (repeats, *a.shape))
    first = lambda units: units if self.scan_layers else units[0]
    return [jax.tree.map(stacked(repeats), first(units).init_cache(batch, length, dtype))
            for (_, repeats), units in zip(self.pattern, self.segments)]

  def remember(self, memory):
    """Returns keys and values of memory [B,K,D] for `extend`: per segment, arrays [L,B,K,...]."""
    if self.scan_layers:
      return [jax.vmap(lambda unit: unit.remember(memory))(units) for units in self.segments]
    return [jax.tree.map(lambda *a: jnp.stack(a), *[unit.remember(memory) for unit in units])
            for units in self.segments]

  def undecodable(self):
    """Returns why the stack cannot be computed token by token, or None.

    A module for which that is not defined says why in its attribute `undecodable`.
    """
    for _, part in modules.offering(self, 'undecodable'):
      if part is not self:
        *_, kind, name = type(part).__module__.split('.')
        return f'{kind.removesuffix("s")} {name} cannot be decoded token by token: {part.undecodable}'
    return None

  def unroll(self):
    """Gives every layer arrays of its own, once, instead of slices of stacked ones at every step of decoding.

    A slice that loops read is a copy of it: of all experts, also those that no token goes to.
    """
    if self.scan_layers:
      take = lambda units, i: jax.tree.map(lambda a: a[i], units)
      self.segments = nnx.List([nnx.List([take(units, i) for i in range(repeats)])
                                for (_, repeats), units in zip(self.pattern, self.segments)])
      self.scan_layers = False

  def init_carry(self, x):
    """Returns the memory across layers, [B,T,.] arrays by name: the union over all layers."""
    carry = {}
    for _, layer in self.layers():
      carry |= modules.init_carry(layer, x)
    return carry

  def layers(self):
    """Yields (segment, place in its unit) and the layer; stacked over units when scanned."""
    for segment, units in enumerate(self.segments):
      for place, block in enumerate((units if self.scan_layers else units[0]).blocks):
        yield (segment, place), block.layer

  def by_name(self):
    """Returns dict layer name -> layer, in layer order; of scanned ones, all of its place stacked."""
    found = {name: layers if self.scan_layers else layers[i]
             for names, layers in self._named() for i, name in enumerate(names)}
    return {name: found[name] for name in sorted(found, key=lambda name: int(name.rpartition('_')[2]))}

  def commit(self, aux):
    """Lets layers with state across steps update it from `aux` (see `stmoe.state`)."""
    for names, layers in self._named():
      if names[0] not in aux:
        continue
      if self.scan_layers:
        _commit_stacked(layers, [aux[name] for name in names])
      else:
        for layer, name in zip(layers, names):
          modules.commit(layer, aux[name])

  def states(self):
    """Returns dict layer name -> dict dotted path in the layer -> RouterState of that one layer."""
    found = {}
    for names, layers in self._named():
      for i, name in enumerate(names):
        flat = nnx.to_flat_state(nnx.state(layers if self.scan_layers else layers[i], state.RouterState))
        found[name] = {'.'.join(map(str, path)): value[...][i] if self.scan_layers else value[...]
                       for path, value in flat}
    return found

  def _named(self):
    """Yields the names of the layers at a place of a repeated unit, and these layers: stacked, or a list."""
    first = 0
    for (letters, repeats), units in zip(self.pattern, self.segments):
      for place in range(len(letters)):
        names = [f'{self.name}_{first + i * len(letters) + place:02d}' for i in range(repeats)]
        layers = [unit.blocks[place].layer for unit in ([units] if self.scan_layers else units)]
        yield names, layers[0] if self.scan_layers else layers
      first += repeats * len(letters)

  def _remat(self, body):
    """`body` that keeps only what the policy names for its backward."""
    if REMAT[self.remat] is None:
      return body
    # A scan cannot merge the recomputation with the forward; a Python loop could.
    return jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=not self.scan_layers)

  def _scan(self, units, repeats, state, ctx, first, width, visible, memory):
    def body(state, unit_first):
      unit, at = unit_first
      x, carry, aux = unit(state[0], ctx, state[1], at, visible, memory)
      return (x, carry), aux

    starts = first + width * jnp.arange(repeats)
    (x, carry), stacked = jax.lax.scan(self._remat(body), state, (units, starts))
    take = lambda i: lambda a: a[i]
    return x, carry, {first + width * i + place: jax.tree.map(take(i), aux)
                      for place, aux in stacked.items() for i in range(repeats)}

  def _loop(self, units, repeats, state, ctx, first, width, visible, memory):
    body = self._remat(lambda unit, state, at: unit(state[0], ctx, state[1], at, visible, memory))
    reports = {}
    for i in range(repeats):
      at = first + width * i
      *state, aux = body(units[i], state, at)
      reports |= {at + place: value for place, value in aux.items()}
    return *state, reports


def check_pattern(name, pattern, blocks):
  """Raises UserError unless `pattern` is (letters, repeats) pairs of letters in `blocks`."""
  for entry in pattern:
    if not (isinstance(entry, (tuple, list)) and [type(e) for e in entry] == [str, int]
            and entry[0] and entry[1] > 0):
      raise errors.UserError(f'{name} layers {tuple(pattern)!r}: each entry is (letters, repeats), '
                             "for example (('dm', 6),)")
    for letter in entry[0]:
      if letter not in blocks:
        raise errors.UserError(f'{name} layers use the letter {letter!r}, but blocks has only: '
                               f'{", ".join(sorted(blocks))}')


def _block(fields, *, attention, cross, **shared):
  """The recipe of a block from its configuration."""
  fields = dict(fields)
  attended, normed = fields.pop('attention', True), fields.pop('norm', True)
  layer = lookup.recipe('layer', {'name': fields.pop('layer')} | fields)
  if not attended:
    attention = cross = None
  return functools.partial(block_lib.Block, layer=layer, attention=attention, cross=cross,
                           layer_norm=normed, **shared)


def _units(recipes, d_model, repeats, scan_layers, rngs):
  """One Unit whose arrays have a leading axis of `repeats`, or a list of so many Units."""
  if not scan_layers:
    return nnx.List([block_lib.Unit(recipes, d_model, rngs=rngs) for _ in range(repeats)])

  @nnx.split_rngs(splits=repeats)
  @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: 'layers'})
  def make(rngs):
    return block_lib.Unit(recipes, d_model, rngs=rngs)
  return make(rngs)


def _loop_over(body, state, layers):
  """`jax.lax.scan` over (a list of units, stacked arrays), as a Python loop."""
  units, *arrays = layers
  results = []
  for i, unit in enumerate(units):
    state, result = body(state, (unit, *jax.tree.map(lambda a, i=i: a[i], arrays)))
    results.append(result)
  return state, jax.tree.map(lambda *a: jnp.stack(a), *results)


def _commit_stacked(layer, aux):
  """`modules.commit` for every slice of a stacked layer; only its RouterState changes."""
  if not jax.tree.leaves(nnx.state(layer, state.RouterState)):
    return

  def one(layer, aux):
    modules.commit(layer, aux)
    return nnx.state(layer, state.RouterState)

  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *aux)
  nnx.update(layer, jax.vmap(one)(layer, stacked))
