"""Expert parallelism in hops: an all-to-all over each axis that splits the experts, one after the other.

The executor `all_to_all` has one exchange with all P devices. mesh.rules='expert=data+expert' splits experts
over two axes: n nodes of m devices. A row then travels twice. The first hop goes to the expert's node, to the
device with the sender's place. The second hop goes from there to the expert's device. A device so sends n - 1
and m - 1 messages instead of n m - 1 (SMILE, arXiv:2212.05191). Over one axis both executors are the same.
"""

import jax

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import all_to_all
from stmoe.core.transport import exchange


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
  return all_to_all.through(exchange.axis_by_axis, x, a, experts, key, chunks)
