"""A stack of blocks from a layer pattern: scans over units, the carry, Aux, rematerialisation.

`(('dm', 6),)` is a unit of two blocks, made by the recipes of letters d and m, repeated
six times: one `jax.lax.scan` over arrays with a leading axis of 6. `(('d', 1), ('m', 5))`
is two scans. With `scan_layers=False` the same units run in a Python loop; both forms
begin with the same values and draw the same randomness, by a layer's place in the stack.
"""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import contract
from stmoe.core import hidden
from stmoe.core import noise
from stmoe.core.transport import stacked
from stmoe.core.units import kept
from stmoe.parts import block as block_lib
from stmoe.parts import norm as norms
from stmoe.parts import tied


class Stack(nnx.Module):
  """Blocks in the order of a pattern, then a final norm; dropout before and after.

  Args:
    d_model: D.
    name:    'encoder' or 'decoder'; layers report as name_00, name_01, ...
    pattern: tuple of (letters, repeats).
    blocks:  mapping letter -> dict(layer=..., fields of the layer). `attention=False` leaves attention
      out of a block. `attention=dict(name=..., ...)` is another self-attention than the model's, with the
      model's fields where it states none. `window=W` is a window of its own (see
      `visible.causal`). `norm=False` leaves out the norm before the layer.
      `around=dict(name=...)` puts the block into another one (`parts/around`), with its fields.
      `tied=True` makes all blocks of the letter one block, with one set of arrays (`parts/tied`): layers of
      a Universal Transformer. (('ab', 3),) is then a b a b a b, and (('a', 3), ('b', 3)) is a a a b b b.
    attention, cross: recipes of the attention layers; None where there is none.
    norm:    recipe of the norms.
    norm_place: of the norms, see `block.NORM_PLACES`; with 'sum' there is no final norm.
    residual_factor: of what a sub-layer adds, see `block.Block`.
    dropout_rate: at both ends and after every sub-layer.
    remat:   a key of `kept.POLICIES`, applied to each unit.
    windowed: whether blocks may have windows; who calls the stack then gives the mask of each.
  """

  def __init__(self, d_model: int, *, name, pattern, blocks, attention=None, cross=None, norm=norms.RMSNorm,
               norm_place='input', residual_factor=1.0, dropout_rate=0.0, scan_layers=True,
               remat='elementwise', windowed=False, rngs):
    if remat not in kept.POLICIES:
      raise errors.UserError(f'no remat policy is called {remat!r}{errors.nearest(remat, kept.POLICIES)}'
                             f' (there are: {", ".join(kept.POLICIES)})')
    check_pattern(name, pattern, blocks)
    _check_windows(windows(pattern, blocks), blocks, windowed and attention is not None)
    self.name = name
    self.pattern = tuple((letters, repeats) for letters, repeats in pattern)
    self.scan_layers = scan_layers
    self.remat = remat
    self.dropout_rate = dropout_rate
    self.shown: tuple[int, ...] = ()     # blocks whose states are reported, see `modules.showing`
    self.edits: tuple[hidden.Edit, ...] = ()       # see `modules.edited`
    make = functools.partial(_block, attention=attention, cross=cross, norm=norm, norm_place=norm_place,
                             residual_factor=residual_factor, dropout_rate=dropout_rate)
    tie_all = lambda letters: scan_layers and all(blocks[letter].get('tied') for letter in letters)
    drawn = lambda letters, repeats: 1 if tie_all(letters) else repeats
    self.segments = nnx.List([
        _units([make(letter, blocks[letter]) for letter in letters], d_model, drawn(letters, repeats),
               scan_layers, rngs)
        for letters, repeats in self.pattern])
    self.tied: nnx.Dict = nnx.Dict()
    for (_, repeats), units in zip(self.pattern, self.segments):
      for unit in [units] if scan_layers else units:
        tied.take(self.tied, unit, repeats if scan_layers else None)
    self.norm = None if norm_place == 'sum' else norm(d_model, rngs=rngs)

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (x [B,T,D], aux: dict layer name -> Aux in layer order).

    A feed-forward layer reports as NAME_03, an attention as NAME_03.attention, a part of an attention as
    NAME_03.attention.PART. The `hidden.Hidden` of a block that is `shown` is NAME_03.hidden.

    Args:
      x:   [B,T,D] embedded tokens.
      ctx: Context of this stack; `visible` is a dict name of a sub-layer -> what it sees.
    """
    key = lambda name: ctx.fold(name).key if ctx.train else None
    x = noise.dropout(x, self.dropout_rate, key('input'), broadcast_dims=(-2,))
    x, reports, _ = self._run(x, ctx)
    x = x if self.norm is None else self.norm(x)
    x = noise.dropout(x, self.dropout_rate, key('output'), broadcast_dims=(-2,))
    states = {index: hidden.Hidden(reports[index].pop(hidden.END), ctx.mask) for index in self.shown}
    aux = {self._name(index, end): aux for index, of_block in sorted(reports.items())
           for end, aux in of_block.items() if end != hidden.END}
    return x, aux | {self._name(index, hidden.END): state for index, state in states.items()}

  def extend(self, x: jax.Array, ctx: contract.Context, cache: list,
             remembered: list | None = None) -> tuple[jax.Array, list]:
    """Returns (x [B,T,D], cache) for the next tokens of every row, evaluated.

    Args:
      x, ctx:     of the tokens alone; `visible` is what the tokens see of the cache, with its slot.
      cache:      of `init_cache`.
      remembered: of `remember`, of cross-attention.
    """
    remembered = remembered or _each(lambda caches: {place: {} for place in caches}, cache)
    joined = _each(lambda caches, memories: {place: caches[place] | memories[place] for place in caches},
                   cache, remembered)
    x, _, after = self._run(x, ctx, joined)
    own = lambda caches, new: {place: {name: new[place][name] for name in caches[place]} for place in caches}
    return x if self.norm is None else self.norm(x), _each(own, cache, after)

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> list:
    """Returns the empty cache of `batch` rows of `length` tokens: per segment, arrays [L,B,...].

    Without a scan a segment has a list of caches, one a unit, arrays [B,...]: a loop over tokens then writes
    to the arrays that it carries. Of an array with an axis of layers XLA makes copies at every token.
    """
    of_unit = lambda unit: self.lent(unit).init_cache(batch, length, dtype)
    if not self.scan_layers:
      return [[of_unit(unit) for unit in units] for units in self.segments]
    stacked = lambda repeats: lambda a: jnp.broadcast_to(a, (repeats, *a.shape))
    return [jax.tree.map(stacked(repeats), of_unit(units))
            for (_, repeats), units in zip(self.pattern, self.segments)]

  def remember(self, memory: jax.Array) -> list:
    """Returns keys and values of memory [B,K,D] for `extend`, as `init_cache` has its arrays."""
    of_unit = lambda unit: self.lent(unit).remember(memory)
    if self.scan_layers:
      return [jax.vmap(of_unit, axis_size=repeats)(units)
              for (_, repeats), units in zip(self.pattern, self.segments)]
    return [[of_unit(unit) for unit in units] for units in self.segments]

  def undecodable(self) -> str | None:
    """Returns why the stack cannot be computed token by token, or None.

    A module that cannot be computed so says why in its attribute `undecodable`.
    """
    for _, part in modules.offering(self, 'undecodable'):
      if part is not self:
        *_, kind, name = type(part).__module__.split('.')
        return f'{kind.removesuffix("s")} {name} cannot be decoded token by token: {part.undecodable}'
    return None

  def unroll(self) -> None:
    """Gives every layer arrays of its own, once, instead of slices of stacked arrays at every decoding step.

    Why: a slice that loops read is copied, with all experts, also experts that no token goes to. And every
    unit is a segment then, so that its cache is an array of its own, which is written in place: layers that
    share a stacked cache have it copied at every step.
    """
    stacked = lambda units, i: jax.tree.map(lambda a: a[i], units)
    take = stacked if self.scan_layers else lambda units, i: units[i]
    self.segments = nnx.List([nnx.List([take(units, i)])
                              for (_, repeats), units in zip(self.pattern, self.segments)
                              for i in range(repeats)])
    self.pattern = tuple((letters, 1) for letters, repeats in self.pattern for _ in range(repeats))
    self.scan_layers = False

  def lent(self, part: nnx.Module) -> typing.Any:
    """Returns `part` of this stack, or a copy of it, with the arrays that layers have in common (`tied`)."""
    return tied.lent(part, self.tied)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the memory across layers, [B,T,.] arrays by name: the union over all layers."""
    carry: dict[str, jax.Array] = {}
    for units in self.segments:
      for block in (units if self.scan_layers else units[0]).blocks:
        for layer in self._held(block).sub_layers().values():
          carry |= modules.init_carry(layer, x)
    return carry

  def blocks(self) -> list[str]:
    """Returns the names of all blocks, in their order."""
    return [self._name(index, '') for index in range(sum(len(u) * repeats for u, repeats in self.pattern))]

  def points(self) -> dict[str, tuple[int, str]]:
    """Returns dict name of what `modules.edited` edits -> (index of its block, end of its name)."""
    point_of: dict[str, tuple[int, str]] = {}
    first = 0
    for (letters, repeats), units in zip(self.pattern, self.segments):
      blocks = (units if self.scan_layers else units[0]).blocks
      for index in range(first, first + repeats * len(letters)):
        own = [block_lib.SUB_LAYERS[name][0] for name in blocks[(index - first) % len(letters)].sub_layers()]
        point_of |= {self._name(index, end): (index, end) for end in (*own, hidden.END)}
      first += repeats * len(letters)
    return point_of

  def edit(self, name: str, function: typing.Callable[[jax.Array], jax.Array]) -> None:
    """Puts function(y) in place of what is called `name` among `points`, [B,T,D], from now on."""
    self.edits = (*self.edits, hidden.Edit(*self.points()[name], name, function))

  def layers(self) -> typing.Iterator[tuple]:
    """Yields (segment, place in its unit) and the feed-forward layer; stacked over units when scanned.

    A layer of a tied block is not stacked.
    """
    for segment, units in enumerate(self.segments):
      for place, block in enumerate((units if self.scan_layers else units[0]).blocks):
        yield (segment, place), self._held(block).layer

  def by_name(self) -> dict:
    """Returns dict layer name -> layer, in layer order; scanned layers of a place come stacked.

    The layers are all feed-forward layers, and what else has a router: attention, or parts of attention.
    Layers of tied blocks are not stacked.
    """
    layer_of = {}
    for names, parts in self._named():
      is_layer = '.' not in names[0]
      for i, name in enumerate(names):
        part = parts[i] if isinstance(parts, list) else parts
        if is_layer or modules.sparse(part):
          layer_of[name] = part
    return {name: layer_of[name] for name in sorted(layer_of, key=_place)}

  def commit(self, aux: dict, offer: str = 'commit') -> None:
    """Lets layers with state across steps update it from `aux` (see `stmoe.router_state`)."""
    for names, parts in self._named():
      if names[0] not in aux:
        continue
      if isinstance(parts, list):
        for part, name in zip(parts, names):
          modules.commit(part, aux[name], offer)
      else:
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[aux[n] for n in names])
        modules.commit_each(parts, whole, offer)

  def states(self) -> dict:
    """Returns dict layer name -> dict dotted path in the layer -> RouterState of that one layer."""
    state_of = {}
    for names, parts in self._named():
      for i, name in enumerate(names):
        apart = isinstance(parts, list)
        flat = nnx.to_flat_state(nnx.state(parts[i] if apart else parts, state.RouterState))
        values = {'.'.join(map(str, path)): value[...] if apart else value[...][i] for path, value in flat}
        if values or '.' not in name:
          state_of[name] = values
    return state_of

  def _name(self, index, end):
    """The name under which a part of block `index` reports; `end` is that of `block.Block.parts`."""
    return f'{self.name}_{index:02d}{end}'

  def _named(self):
    """Yields (names, part) for a part of the blocks at a place of a repeated unit: stacked, or a list.

    The list of a scanned stack has one entry for every layer of a tied block, always the same.
    """
    first = 0
    for (letters, repeats), units in zip(self.pattern, self.segments):
      for place in range(len(letters)):
        blocks = [self._held(unit.blocks[place]) for unit in ([units] if self.scan_layers else units)]
        stacked = self.scan_layers and not contract.offered(blocks[0], 'ties')
        for end in blocks[0].parts():
          names = [self._name(first + i * len(letters) + place, end) for i in range(repeats)]
          parts = [block.parts()[end] for block in blocks]
          yield names, parts[0] if stacked else parts * repeats if self.scan_layers else parts
      first += repeats * len(letters)

  def _held(self, block):
    """`block` itself, or, of a tied block that has no arrays here, the block with the arrays."""
    return self.lent(block) if contract.offered(block, 'ties') else block

  def _run(self, x, ctx, caches=None):
    """(x, dict block index -> aux, caches) after all blocks; blocks report only where nothing is cached."""
    def body(shown, edits, arrays, state, layer):
      (x, carry, totals), (unit, number, first, cache) = state, layer
      with stacked.within(arrays, unit, number, totals) as (unit, known):
        x, aux, carry = self.lent(unit)(x, ctx, contract.joined(carry, cache), first, shown, edits)
      carry, cache = contract.apart(carry)
      return (x, carry, known.totals), (aux if cache is None else {}, cache)

    carry, reports, after, first = self.init_carry(x), {}, [], 0
    over = jax.lax.scan if self.scan_layers else _loop_over
    for number, ((letters, repeats), units) in enumerate(zip(self.pattern, self.segments)):
      starts = first + len(letters) * np.arange(repeats)
      last = first + repeats * len(letters)
      shown = {(index - first) % len(letters) for index in self.shown if first <= index < last}
      edits: dict[int, list] = {}
      for edit in self.edits:
        if first <= edit.block < last:
          edits.setdefault((edit.block - first) % len(letters), []).append(edit)
      arrays = stacked.wholes(units) if self.scan_layers else []
      sums = arrays and ctx.train and _reads_stacks(units)
      units, totals = stacked.summed(units, arrays) if sums else (units, [])
      layers = units, np.arange(repeats), starts, caches and caches[number]
      one = self._remat(functools.partial(body, shown, edits, arrays))
      (x, carry, _), (aux, cache) = over(one, (x, carry, totals), layers)
      reports |= {int(start) + place: jax.tree.map(lambda a, i=i: a[i], of_block)
                  for place, of_block in aux.items() for i, start in enumerate(starts)}
      after.append(cache)
      first = last
    return x, reports, after

  def _remat(self, body):
    """`body` that keeps only what the policy names for its backward."""
    policy = kept.POLICIES[self.remat]
    # Of a Python loop XLA sees every operation: what is elementwise is computed again where XLA says so.
    if policy is None or policy is kept.all_but_elementwise and not self.scan_layers:
      return body
    # A scan cannot merge the recomputation with the forward; a Python loop could.
    return jax.checkpoint(body, policy=policy, prevent_cse=not self.scan_layers)


def check_pattern(name: str, pattern: typing.Any, blocks: typing.Mapping[str, typing.Any]) -> None:
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


def windows(pattern: typing.Any, blocks: typing.Mapping[str, typing.Any]) -> dict[str, int]:
  """Returns dict letter of `pattern` -> window of its block, without blocks that have none of their own."""
  of_letter = {letter: blocks[letter].get('window') for letters, _ in pattern for letter in letters}
  return {letter: window for letter, window in of_letter.items() if window is not None}


def _check_windows(own, blocks, possible):
  """Raises UserError for windows `own` of blocks where there is nothing to see through them."""
  for letter, window in own.items():
    if not possible or not blocks[letter].get('attention', True):
      raise errors.UserError(f'blocks.{letter}.window={window}: only self-attention of the model lm has '
                             f'windows; nearest: no blocks.{letter}.window')


def _block(letter, fields, *, attention, cross, **shared):
  """The recipe of a block from its configuration."""
  fields = dict(fields)
  attended, normed = fields.pop('attention', True), fields.pop('norm', True)
  around, tie = fields.pop('around', None), fields.pop('tied', False)
  window = fields.pop('window', None)
  layer = lookup.recipe('layer', {'name': fields.pop('layer')} | fields)
  if not attended:
    attention = cross = None
  elif attended is not True:
    attention = _instead(attention, lookup.recipe('attention', attended))
  block = functools.partial(block_lib.Block, layer=layer, attention=attention, cross=cross,
                            layer_norm=normed, window=window, **shared)
  if around is not None:
    block = functools.partial(lookup.recipe('around', around), block=block)
  return (lambda d_model, rngs: tied.whole(block(d_model, rngs=rngs), letter)) if tie else block


def _instead(attention, own):
  """The recipe `own` of a block's attention, and what the model's `attention` says of fields left open."""
  if attention is None:
    raise errors.UserError('blocks.*.attention: the model has no attention; nearest: attention=False')
  shared, stated = getattr(attention, 'keywords', {}), getattr(own, 'keywords', {})
  return functools.partial(own, **{name: value for name, value in shared.items()
                                   if name not in stated and lookup.takes(own, name)})


def _reads_stacks(units):
  """Whether an executor of `units` reads arrays of experts where they lie in a stack; see `stacked`."""
  executors = {part.executor for _, part in modules.offering(units, 'executor')}
  return any(hasattr(lookup.module('executor', lookup.spelled('executor', each)[0]), 'READS_STACKS')
             for each in executors)


def _units(recipes, d_model, repeats, scan_layers, rngs):
  """A Unit whose arrays have a leading axis of `repeats`, or a list of `repeats` Units of the same values."""
  @nnx.split_rngs(splits=repeats)
  def make(rngs):
    if scan_layers:
      return stacked(rngs)
    streams = (jax.tree.map(lambda a, i=i: a[i], rngs) for i in range(repeats))
    return nnx.List([block_lib.Unit(recipes, d_model, rngs=stream) for stream in streams])

  @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: 'layers'})
  def stacked(rngs):
    return block_lib.Unit(recipes, d_model, rngs=rngs)
  return make(rngs)


def _loop_over(body, state, layers):
  """`jax.lax.scan` over lists of units, numbers, first blocks and caches (or None), as a Python loop.

  What blocks report is stacked, as a scan does it; their caches stay a list.
  """
  *each, caches = layers
  reports, after = [], []
  for *layer, cache in zip(*each, caches or [None] * len(each[0])):
    state, (aux, cache) = body(state, (*layer, cache))
    reports.append(aux)
    after.append(cache)
  return state, (jax.tree.map(lambda *a: jnp.stack(a), *reports), after)


def _each(function, *caches):
  """[function(of a segment in each of `caches`)], or, of segments with a list, that of every unit."""
  return [[function(*of_unit) for of_unit in zip(*of_segment)] if isinstance(of_segment[0], list)
          else function(*of_segment) for of_segment in zip(*caches)]


def _place(name):
  """The number of the block of a layer name, for sorting: 3 of 'decoder_03.attention'."""
  return int(name.partition('.')[0].rpartition('_')[2])
