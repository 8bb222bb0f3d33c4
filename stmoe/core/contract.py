"""The three structs that pass between layers, routers and the trainer.

`Context` goes in beside the activations, `Aux` comes back out, and `Routed` is what a
router answers. They are data: no module is found by name, nothing is sown.
"""

import zlib

from flax import struct
import jax


@struct.dataclass
class Context:
  """What a layer or router may know besides its activations.

  Arrays are [B,T] in a stack and [G,S] inside a router (`layers/moe.py` regroups them).
  """
  mask: jax.Array                    # bool[B,T], True = real token; never inferred from zeros
  ids: jax.Array                     # i32[B,T] token ids
  positions: jax.Array               # i32[B,T] position in its own sequence
  segments: jax.Array                # i32[B,T] sequence number of packed rows; 0 = padding
  step: jax.Array                    # i32[] optimizer step, traced: schedules need no recompile
  tokens: jax.Array                  # f32[] divisor of token-averaged losses (real tokens, see below)
  key: jax.Array | None = None       # JAX PRNG key; None = no randomness (evaluation)
  vocab_size: int | None = struct.field(pytree_node=False, default=None)   # V of `ids`, where known
  train: bool = struct.field(pytree_node=False, default=False)
  causal: bool = struct.field(pytree_node=False, default=False)
  # Every token is routed as if it were alone: no capacity is reached, and it does not matter which tokens
  # are computed together. Decoding and what is to equal it; see `layers.moe.grouping`.
  alone: bool = struct.field(pytree_node=False, default=False)
  # Use only the experts at these ranks of every router's order, 0 the first choice; see `layers.ranks`.
  ranks: tuple | None = struct.field(pytree_node=False, default=None)

  # `tokens` is the number of real tokens of the whole batch divided by the number of
  # microbatches. Dividing sums by it, rather than by the microbatch's own count, makes the
  # mean over microbatches equal the value of the undivided batch even when padding is uneven.

  def fold(self, name):
    """Returns this context with a key of its own for `name`; the same names, the same keys."""
    if self.key is None:
      return self
    return self.replace(key=jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF))

  def group(self, groups, size):
    """Returns this context with its [B,T] arrays reshaped to [groups, size]."""
    shape = lambda a: a.reshape(groups, size)
    return self.replace(mask=shape(self.mask), ids=shape(self.ids),
                        positions=shape(self.positions), segments=shape(self.segments))


@struct.dataclass
class Aux:
  """What a sparse layer reports. All values are unweighted; the configuration weighs them.

  losses:  dict name -> f32[], for example 'balance' and 'z'.
  load:    f32[E] real (token, choice) pairs sent to each expert before any drop.
  metrics: dict name -> f32[].
  """
  losses: dict
  load: jax.Array
  metrics: dict


@struct.dataclass
class Routed:
  """A router's answer: the edges to execute, what it reports, and its memory across layers."""
  assignment: object
  aux: Aux
  carry: object
