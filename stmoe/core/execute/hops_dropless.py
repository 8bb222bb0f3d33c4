"""Expert parallelism in hops without capacity buffers: `all_to_all_dropless` over one axis after the other.

What arrives from the first hop, at the expert's node, is an Assignment to the experts of that node. The
second hop exchanges its rows as the first one did, see `hops` (SMILE, arXiv:2212.05191). Buffers grow with
every hop: they have room for all rows that may come together at a device on the way.
"""

import jax

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import all_to_all_dropless
from stmoe.core.transport import exchange

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
  return all_to_all_dropless.through(exchange.axis_by_axis, x, a, experts, key)
