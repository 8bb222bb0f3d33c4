"""Expert parallelism with capacity buffers: `gather` on every device, around two all-to-alls.

Every device fills the buffers of all experts from its own groups, x[G_{data,expert},S,D] -> rows
[E,R,D]. An all-to-all over the axes that split the experts gives each expert the rows of all devices.
The experts run, and a second all-to-all brings their results home. The transposes of the two
collectives are two all-to-alls again. Nothing else moves but the gradients of experts that several
devices hold. Experts may be cut over `model` at the same time.
"""

from flax import struct
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import gather
from stmoe.core.transport import exchange
from stmoe.core.transport import layouts


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank, key: jax.Array | None = None, *,
            chunks: ranges.Count = 1) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, its arrays [E,...] or shared by all experts.
    key:     PRNG key for dropout inside experts (every device draws its own), or None.
    chunks:  into how many parts the rows are cut; while experts work on a part the next part can travel.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  return through(exchange.at_once, x, a, experts, key, chunks)


def through(hops: exchange.Hops, x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None, chunks: int) -> jax.Array:
  """Returns `execute(x, a, experts, key, chunks)` [G,S,D'], whose rows x [G,S,D] travel in `hops`."""
  def local(x, a, experts, key, over):
    return gather.execute(x, a, Remote(experts, hops(over), chunks) if over else experts, key)
  return exchange.on_shards(local, x, a, experts, key)


@struct.dataclass
class Remote:
  """A bank of E experts of which each device has its part: rows travel to their experts and back.

  hops: the mesh axes of each all-to-all of P1, P2, ... devices on the way there; back is the reverse.
  """
  bank: contract.Bank
  hops: tuple = struct.field(pytree_node=False)
  chunks: int = struct.field(pytree_node=False)

  def __call__(self, rows: layouts.Buckets, key: jax.Array | None = None) -> layouts.Buckets:
    """Returns the rows' expert outputs: Buckets [E,R,D] -> [E,R,D']."""
    parts = jnp.array_split(rows.x, self.chunks, axis=1)
    outputs = [self._part(x, key if key is None else jax.random.fold_in(key, i)) for i, x in enumerate(parts)]
    return layouts.Buckets(jnp.concatenate(outputs, axis=1))

  def _part(self, x, key):
    peers = [exchange.num_devices(axes) for axes in self.hops]
    num, size, _ = x.shape
    x = x.reshape(*peers, -1, *x.shape[1:])                          # [P1, P2, E/P, R, D]
    with jax.named_scope('dispatch'):
      for at, axes in enumerate(self.hops):
        x = jax.lax.all_to_all(x, axes, at, at, tiled=True)          # [P1, P2, E/P, R, D], of senders
    x = jnp.moveaxis(x, len(peers), 0)                               # [E/P, P1, P2, R, D]
    y = self.bank(layouts.Buckets(x.reshape(len(x), -1, x.shape[-1])), key).x      # [E/P, P*R, D']
    y = jnp.moveaxis(y.reshape(len(x), *peers, size, -1), 0, len(peers))
    with jax.named_scope('combine'):
      for at, axes in reversed([*enumerate(self.hops)]):
        y = jax.lax.all_to_all(y, axes, at, at, tiled=True)          # [P1, P2, E/P, R, D']
    return y.reshape(num, size, -1)
