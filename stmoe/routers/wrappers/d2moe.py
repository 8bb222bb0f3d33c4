"""A router for experts at several widths of bits: who chooses an expert also chooses its bits (D2MoE)."""

import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers


class D2moe(wrappers.Wrapper):
  """The choices of `inner`, each with a number of bits by its gate: dual routing (arXiv:2504.15299).

  Expert e at widths[j] is expert e * n + j of n E: its bank is `experts/wrappers/packed.py` with the same
  widths. The j of an edge with weight g is how many of n - 1 thresholds g has reached, and at most what the
  expert's planes in memory allow. What `inner` did not drop is not dropped here. (u: the paper's router of
  bits; we know that gates decide.)

  Args:
    widths:     rising numbers of bits.
    thresholds: n - 1 rising gates; None = at equal distances between 0 and 1.
    most:       of each expert the largest j that is in memory; None = n - 1. A state of the router, so that
      every layer may have its own.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('router'),
               widths: ranges.Many(ranges.Whole(1, 8), 1),
               thresholds: ranges.Many(ranges.NonNegative) | None = None,
               most: ranges.Many(ranges.Natural) | None = None, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    number, experts = len(widths), self.inner.num_experts
    thresholds = [j / number for j in range(1, number)] if thresholds is None else list(thresholds)
    most = [number - 1] * experts if most is None else list(most)
    for field, values in (('widths', list(widths)), ('thresholds', thresholds)):
      if sorted({*values}) != values:
        raise UserError(f'router d2moe: {field}={tuple(values)} do not rise; nearest: '
                        f'{tuple(sorted({*values}))}')
    if len(thresholds) != number - 1 or len(most) != experts or max(most) >= number:
      raise UserError(f'router d2moe: {len(thresholds)} thresholds and most={tuple(most)} for {number} '
                      f'widths and {experts} experts; wanted: {number - 1} thresholds, and {experts} numbers '
                      f'below {number}')
    self.num_experts = number * experts
    self.thresholds = tuple(thresholds)
    self.most = axes.state(jnp.asarray(most, jnp.int32), 'unmodeled')

  def commit(self, aux: contract.Aux) -> None:
    """Gives the inner router the load of its own experts, aux.statistics['load_before'] f32[E]."""
    if contract.offered(self.inner, 'commit'):
      self.inner.commit(aux.replace(load=aux.statistics['load_before'].value))

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns `routed` with edges [G,N] to experts at a width, and the load f32[n E (+ Z)] of these."""
    a, aux, number = routed.assignment, routed.aux, len(self.thresholds) + 1
    if isinstance(a, assignment.SoftAssignment):
      raise UserError('router d2moe: its inner router mixes tokens, it lists no edges; nearest: st_moe')
    reached = (a.weight[..., None] >= jnp.asarray(self.thresholds)).sum(-1)        # [G, N]
    width = jnp.minimum(reached, self.most[...].at[a.expert].get(mode='clip'))
    beyond = a.expert - self.inner.num_experts                       # virtual and dead ones come last
    expert = jnp.where(beyond < 0, a.expert * number + width, self.num_experts + beyond).astype(jnp.int32)
    edges = assignment.Edges(token=a.token, expert=expert, weight=a.weight, num_tokens=a.num_tokens,
                             num_experts=self.num_experts, num_virtual=a.num_virtual, choices=a.choices,
                             spare=a.spare)
    real, rest = aux.load[:self.inner.num_experts], aux.load[self.inner.num_experts:]
    live = jnp.zeros(self.num_experts + 1).at[jnp.minimum(expert, self.num_experts)].add(1.0)[:-1]
    share = live.reshape(-1, number) / jnp.maximum(live.reshape(-1, number).sum(1, keepdims=True), 1)
    load = jnp.concatenate([(real[:, None] * share).reshape(-1), rest])
    statistics = aux.statistics | dict(load_before=contract.total(aux.load))
    return routed.replace(assignment=assignment.cap(edges, a.capacity),
                          aux=aux.replace(load=load, statistics=statistics))
