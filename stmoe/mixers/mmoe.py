"""Multi-gate mixture of experts: all tasks share experts, each has a gate (MMoE, KDD 2018)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.parts.tasks import multi_gate

GATES = dict(task='a gate for every task', one='one gate for all tasks')


class Mmoe(multi_gate.Levels):
  """h_t = sum_e softmax(W_t x)_e f_e(x) for every task t (Ma et al., KDD 2018).

  Every expert is the same network with ReLU. A single expert is the shared bottom, which needs no gate.

  Args:
    num_experts: E.
    hidden:      widths of further layers of an expert, before the one of width H.
    gates:       'task', or 'one' for all tasks (OMoE, the paper's comparison).
    top:         experts that a gate keeps; None = all.
  Losses: none. Metrics: zero_share of each level, see `multi_gate.Level`.
  """

  def __init__(self, width: int, d_model: int, num_tasks: int, *, num_experts: ranges.Count,
               hidden: ranges.Many(ranges.Count) = (), gates: ranges.Choice(*GATES) = 'task',
               top: ranges.Count | None = None, rngs):
    names = [f'task_{t}' for t in range(num_tasks)] if gates == 'task' else ['all']
    self.levels = nnx.List([multi_gate.Level(
        width, (*hidden, d_model), dict(shared=num_experts),
        {name: multi_gate.Sees(('shared',)) for name in names}, width, top=top, rngs=rngs)])
    self.num_tasks = num_tasks

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns ([B,K,H], dict layer name -> Aux) for x [B,D]."""
    level = self.levels[0]
    mixed, report = level(dict(shared=x), {name: x for name, _ in level.sees}, ctx)
    h = jnp.stack(list(mixed.values()), axis=1)                      # [B, K or 1, H]
    return jnp.broadcast_to(h, (len(x), self.num_tasks, h.shape[-1])), self.reported([report])
