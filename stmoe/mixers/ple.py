"""Progressive layered extraction: experts of tasks beside shared ones, in levels (PLE, CGC, RecSys 2020)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.parts.tasks import multi_gate


class Ple(multi_gate.Levels):
  """PLE (Tang et al., RecSys 2020, "Progressive layered extraction"); with one level it is CGC.

  In level j the experts of task t read g_{t,j-1}, the shared ones g_{s,j-1}; both are x at first. Then
    g_{t,j} = softmax(W_{t,j} g_{t,j-1}) [own; shared]             experts of other tasks are not connected
    g_{s,j} = softmax(W_{s,j} g_{s,j-1}) [all tasks' experts; shared]    not in the top level
  What task t's tower reads is its g of the top level.

  Args:
    specific, shared: experts of each task, and shared ones, in every level.
    num_levels: N.
    hidden:    widths of further layers of an expert, before the one of width H.
    separate:  False connects all experts with all gates (ML-MMoE, the paper's comparison): below the top
      level there is one gate, whose mixture all experts and gates of the next level read.
    top:       experts that a gate keeps; None = all.
  Losses: none. Metrics: zero_share of each level, see `multi_gate.Level`.
  """

  def __init__(self, width: int, d_model: int, num_tasks: int, *, specific: ranges.Count = 1,
               shared: ranges.Count = 1, num_levels: ranges.Count = 2, hidden: ranges.Many(ranges.Count) = (),
               separate: ranges.Flag = True, top: ranges.Count | None = None, rngs):
    tasks = tuple(f'task_{t}' for t in range(num_tasks))
    banks = dict.fromkeys(tasks, specific) | dict(shared=shared)
    all_banks = multi_gate.Sees(tuple(banks))
    mixes = {task: multi_gate.Sees((task, 'shared')) if separate else all_banks for task in tasks}

    def level(j):
      below = dict(shared=all_banks) if j < num_levels - 1 else {}
      gates = mixes | below if separate or not below else below
      return multi_gate.Level(width if j == 0 else d_model, (*hidden, d_model), banks, gates,
                              width if j == 0 else d_model, top=top, rngs=rngs)
    self.levels = nnx.List([level(j) for j in range(num_levels)])
    self.tasks = tasks

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns ([B,K,H], dict layer name -> Aux) for x [B,D]."""
    g, reports = dict.fromkeys((*self.tasks, 'shared'), x), []
    for level in self.levels:
      mixed, report = level(g, g, ctx)
      g = {name: mixed.get(name, mixed.get('shared')) for name in g}   # [B, H] each
      reports.append(report)
    return jnp.stack([g[task] for task in self.tasks], axis=1), self.reported(reports)
