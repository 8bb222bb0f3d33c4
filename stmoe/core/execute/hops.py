"""Expert parallelism in hops: an all-to-all over each axis that splits the experts, one after the other.

The executor `all_to_all` has one exchange with all P devices. mesh.rules='expert=data+expert' splits experts
over two axes: n nodes of m devices. A row then travels twice. The first hop goes to the expert's node, to the
device with the sender's place. The second hop goes from there to the expert's device. A device so sends n - 1
and m - 1 messages instead of n m - 1 (SMILE, arXiv:2212.05191). Over one axis both executors are the same.
"""

import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import gather
from stmoe.core.transport import exchange
from stmoe.core.transport import layouts


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, its arrays [E,...] or shared by all experts.
    key:     PRNG key for dropout inside experts (every device draws its own), or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  def local(x, a, experts, key, over):
    return gather.execute(x, a, Remote(experts, over) if over else experts, key)
  return exchange.on_shards(local, x, a, experts, key)


@struct.dataclass
class Remote:
  """A bank of E experts of which each device has its part: rows travel to their expert and back in hops."""
  bank: typing.Any
  over: tuple = struct.field(pytree_node=False)

  def __call__(self, rows: layouts.Buckets, key: jax.Array | None = None) -> layouts.Buckets:
    """Returns the rows' expert outputs: Buckets [E,R,D] -> [E,R,D']."""
    peers = [exchange.num_devices((axis,)) for axis in self.over]
    num, size, _ = rows.x.shape
    x = rows.x.reshape(*peers, -1, *rows.x.shape[1:])                # [n, m, E/P, R, D]
    with jax.named_scope('dispatch'):
      x = self._exchange(x, self.over)                               # [n, m, E/P, R, D], of senders
    x = jnp.moveaxis(x, len(peers), 0)                               # [E/P, n, m, R, D]
    y = self.bank(layouts.Buckets(x.reshape(len(x), -1, x.shape[-1])), key).x      # [E/P, P*R, D']
    y = jnp.moveaxis(y.reshape(len(x), *peers, size, -1), 0, len(peers))
    with jax.named_scope('combine'):
      y = self._exchange(y, self.over[::-1])                         # [n, m, E/P, R, D']
    return layouts.Buckets(y.reshape(num, size, -1))

  def _exchange(self, x, order):
    """x [n,m,...] after an all-to-all over each mesh axis of `order`, along the axis of x that counts it."""
    for axis in order:
      at = self.over.index(axis)
      x = jax.lax.all_to_all(x, axis, at, at, tiled=True)
    return x
