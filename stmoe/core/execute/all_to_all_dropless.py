"""Expert parallelism without capacity buffers: rows sorted by expert, exchanged, run by `pallas`, sent back.

No edge has to be dropped, and no buffer is padded to a capacity. As many rows travel as there are, where
the backend has `ragged_all_to_all` (see `core/transport/exchange.py`). What arrives is an
Assignment again, of every sender's rows to this device's experts. Buffers must have a size, though:
R rows for every pair of devices, as many as a device may ever have for another.
"""

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import pallas
from stmoe.core.transport import exchange
from stmoe.core.transport import rows as rows_lib

READS_STACKS = True                      # on one device, where `pallas` runs


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, its arrays [E,...] or shared by all experts.
    key:     PRNG key for dropout inside experts (every block draws its own), or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  return through(exchange.at_once, x, a, experts, key)


def through(hops: exchange.Hops, x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None) -> jax.Array:
  """Returns `execute(x, a, experts, key)` [G,S,D'], whose rows x [G,S,D] travel in `hops`."""
  local = lambda x, a, experts, key, over: _local(x, a, experts, key, hops(over))
  return exchange.on_shards(local, x, a, experts, key)


def _local(x, a, experts, key, hops):
  if not hops:                                                       # all rows are where their experts are
    return pallas.of_device(x, a, experts, key)
  over, *further = hops
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  num, mine = a.expert.size, a.num_experts // exchange.num_devices(over)
  with jax.named_scope('dispatch'):
    rows = rows_lib.sort(a)
    plan = exchange.plan(rows.sizes, over, limit=min(num, a.expert.shape[0] * mine * a.capacity))
    arrived = exchange.there(rows_lib.take(x, a, rows), plan)        # [P, R, D]
  y = _local(arrived, received(plan.counts, plan.limit), experts, key, further)     # [P, R, D']
  with jax.named_scope('combine'):
    y = rows_lib.give(exchange.back(y, plan, num), a, rows)          # [G, N, D']
    return rows_lib.add_up(y.astype(jnp.float32) * weight[..., None], a).astype(x.dtype)


def received(counts: jax.Array, limit: int) -> assignment.Assignment:
  """Returns the Assignment of rows that arrived sorted by expert: each row to its expert, with weight 1.

  Args:
    counts: i32[P,E] rows from each sender by expert; the senders are the groups.
    limit:  R, the tokens of a group; tokens behind the rows are dead.

  >>> received(jnp.array([[1, 2], [0, 1]]), 3).expert.tolist()
  [[0, 1, 1], [1, 2, 2]]
  """
  peers, num_experts = counts.shape
  end = jnp.cumsum(counts, axis=1)                                   # [P, E]
  row = jnp.broadcast_to(jnp.arange(limit, dtype=jnp.int32), (peers, limit))
  expert = jnp.sum(row[..., None] >= end[:, None], axis=-1, dtype=jnp.int32)       # [P, R]
  start = jnp.pad(end - counts, ((0, 0), (0, 1)))                    # [P, E+1]
  slot = jnp.where(expert < num_experts, row - jnp.take_along_axis(start, expert, axis=1), limit)
  return assignment.Assignment(token=row, expert=expert, weight=jnp.ones((peers, limit)), slot=slot,
                               num_tokens=limit, num_experts=num_experts, choices=1, capacity=limit)
