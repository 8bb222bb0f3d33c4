"""What a model remembers of a text while it writes on: passed in and returned at every step."""

import dataclasses
import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract
from stmoe.core import hashing


class Cache(struct.PyTreeNode):
  """Keys and values of K places, and at which place each row is. All rows fill their places from the left.

  layers:    of `stack.Stack.init_cache`, arrays [L,B,...] where `stacked`, else [B,...]; a layer knows which
    axis is that of places.
  segments:  i32[B,K] 1 = a real token, 0 = padding or not yet written: prompts of different lengths.
  positions: i32[B] position, in its own text, of each row's next token.
  slot:      i32[] place of the next token.
  last:      i32[B] id of each row's last token; what it is before the first token is never read.
  memory:    of `stack.Stack.remember`, arrays as in `layers`, or None.
  memory_segments: i32[B,K'] of what an encoder read, or None.
  given:     arrays 'given/NAME' [B,...] of the batch, which hold for every token of a row; and the number of
    its text, `contract.TEXT_NUMBER`.
  key:       PRNG key of routers that draw in evaluation (`draws_at_eval`), the same at every token, or None.
  """
  layers: list
  segments: jax.Array
  positions: jax.Array
  slot: jax.Array
  last: jax.Array
  memory: list | None = None
  memory_segments: jax.Array | None = None
  given: dict = dataclasses.field(default_factory=dict)
  key: jax.Array | None = None
  stacked: bool = struct.field(pytree_node=False, default=True)

  def batch(self, stack: str, ids: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
    """Returns the batch [B,1] of a stack's next tokens ids i32[B]; rows that are not real bool[B] rest."""
    return self.given | {f'{stack}_input_tokens': ids[:, None], f'{stack}_segment_ids': real[:, None] * 1,
                         f'{stack}_positions': self.positions[:, None]}

  def write(self, segments: jax.Array) -> jax.Array:
    """Returns the cache's segments i32[B,K] with the segments of the next tokens i32[B,T] in their places."""
    return jax.lax.dynamic_update_slice_in_dim(self.segments, segments, self.slot, 1)

  def before(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns i32[B,T], `contract.Context.before` of the next tokens ids i32[B,T] with their positions."""
    earlier = jnp.concatenate([self.last[:, None], ids[:, :-1]], axis=1)
    return jnp.where(positions > 0, earlier, hashing.START)

  def advance(self, layers: list, ids: jax.Array, segments: jax.Array) -> 'Cache':
    """Returns the cache after tokens, ids and segments i32[B,T], were put in, which made `layers`."""
    real = jnp.sum(segments > 0, axis=1, dtype=jnp.int32)            # [B]
    seen = jnp.concatenate([self.last[:, None], ids], axis=1)        # [B, 1 + T]
    last = jnp.take_along_axis(seen, real[:, None], axis=1)[:, 0]
    return self.replace(layers=layers, segments=self.write(segments), positions=self.positions + real,
                        slot=self.slot + segments.shape[1], last=last)

  def take(self, rows: jax.Array) -> 'Cache':
    """Returns the cache of `rows` i32[n], with everything in it: rows repeated for the beams of a search."""
    return self.reorder(rows).replace(
        memory=self._taken(self.memory, rows),
        memory_segments=None if self.memory_segments is None else self.memory_segments[rows])

  def reorder(self, rows: jax.Array) -> 'Cache':
    """Returns the cache with `rows` i32[B] in new places; rows that change places share a memory."""
    return self.replace(layers=self._taken(self.layers, rows), segments=self.segments[rows],
                        positions=self.positions[rows], last=self.last[rows],
                        given=jax.tree.map(lambda a: a[rows], self.given))

  def _taken(self, arrays, rows):
    take = lambda a: a[:, rows] if self.stacked else a[rows]
    return jax.tree.map(lambda a: _split(take(a), self.stacked), arrays)


def empty(stack: typing.Any, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Cache:
  """Returns the Cache of a stack for `batch` rows of up to `length` tokens; rows are split over the mesh."""
  stacked = stack.scan_layers
  layers = jax.tree.map(lambda a: _split(a, stacked), stack.init_cache(batch, length, dtype))
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  return Cache(layers=layers, segments=zeros(batch, length), positions=zeros(batch), slot=zeros(),
               last=zeros(batch), given={f'given/{contract.TEXT_NUMBER}': jnp.arange(batch, dtype=jnp.int32)},
               stacked=stacked)


def extended(cache: dict[str, jax.Array], new: dict[str, jax.Array], slot: jax.Array,
             axis: int = 1) -> dict[str, jax.Array]:
  """Returns a layer's cache, dict of arrays [B,K,...], with the `new` [B,T,...] from `slot` i32[] on.

  axis: that of places, where it is not the second.
  """
  return {name: jax.lax.dynamic_update_slice_in_dim(cache[name], a, slot, axis) for name, a in new.items()}


def _split(a, stacked):
  """`a` [L,B,...], or [B,...], whose rows are split over the mesh."""
  names = [None, 'batch'] if stacked else ['batch']
  return axes.constrain(a, *names, *[None] * (a.ndim - len(names)))
