"""Chain of experts: a token passes one pool of experts several times, chosen anew each time
(arXiv:2506.18945)."""

import typing

from flax import nnx
import jax

from stmoe import modules
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import norm


class Turn(nnx.Module):
  """The router of a turn after the first, or None if the first one's is taken. All else is the first's."""

  def __init__(self, router: nnx.Module | None, d_model: int):
    self.router = router
    self.d_model = d_model


class ChainOfExperts(nnx.Module):
  """v_0 = n = RMSNorm(x); v_t = inner_t(v_(t-1)) + v_(t-1); a block returns v_C (arXiv:2506.18945).

  The C turns of `inner` have all but their routers in common. Its shared experts run in every turn.
  The paper's published model has no skip connection around the layer: its residual stream begins anew at n.
  The layer acts on the stream itself, so the block has `norm=False`, and returns v_C - x for it to add.

  Each turn reports by itself: as `inner`, `turn_2`, ..., `turn_C`.

  Args:
    inner:          recipe of the layer of a turn, with one router: 'moe', or 'shared' around it.
    iterations:     C.
    each_gate:      every turn has a router of its own; else all have one (worse than no chain at all).
    inner_residual: what is added in a turn: 'previous', v_(t-1); 'initial', n; 'none'.
    outer_residual: the layer's input x is added to v_C.
    norm_epsilon:   of the norm.
    remat:          the backward computes each turn again, instead of keeping C times what one layer keeps.
  Raises:
    UserError: an `inner` with another number of routers than one, or one router with a state for all turns.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), iterations: ranges.Count = 2,
               each_gate: ranges.Flag = True,
               inner_residual: ranges.Choice('previous', 'initial', 'none') = 'previous',
               outer_residual: ranges.Flag = False, norm_epsilon: ranges.PartOf1 = 1e-6,
               remat: ranges.Flag = False, rngs):
    self.norm = norm.RMSNorm(d_model, epsilon=norm_epsilon, rngs=rngs)
    self.inner = inner(d_model, rngs=rngs)
    sparse = modules.sparse(self.inner)
    if len(sparse) != 1:
      raise UserError(f'layer chain_of_experts: {checked.file(self.inner)} has {len(sparse)} routers, and a '
                      "turn has one; nearest: inner.name='moe'")
    router = sparse[0].router
    if not each_gate and contract.offered(router, 'commit'):
      raise UserError(f'layer chain_of_experts: each_gate=False, but {checked.file(router)} keeps a state by '
                      'the load of one turn; nearest: each_gate=True')
    self.inner.uses = iterations
    if each_gate:
      router.uses = 1
    self.reports = ('inner', *(f'turn_{turn}' for turn in range(2, iterations + 1)))
    for name in self.reports[1:]:
      own = modules.sparse(inner(d_model, rngs=rngs))[0].router if each_gate else None
      setattr(self, name, Turn(own, d_model))
    self.iterations = iterations
    self.inner_residual = inner_residual
    self.outer_residual = outer_residual
    self.remat = remat

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], dict of Aux, carry) for x [B,T,D]."""
    v, aux, carry = self.iterate(self.norm(x), ctx, carry)
    return v if self.outer_residual else v - x, aux, carry

  def iterate(self, n: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (v_C [B,T,D], dict of Aux, carry) for the normalised n [B,T,D]."""
    v, aux = n, {}
    run = jax.checkpoint(checked.answer) if self.remat else checked.answer
    for name, layer in self.turns():
      y, aux[name], carry = run(layer, v, ctx.fold(name), carry)
      added = dict(previous=v, initial=n).get(self.inner_residual)   # [B, T, D]
      v = y if added is None else y + added
    return v, aux, carry

  def turns(self) -> typing.Iterator[tuple[str, typing.Any]]:
    """Yields (name that it reports under, layer) of every turn."""
    yield 'inner', self.inner
    for name in self.reports[1:]:
      layer = jax.tree.map(lambda a: a, self.inner)                  # another module of the same arrays
      modules.sparse(layer)[0].router = getattr(self, name).router or modules.sparse(layer)[0].router
      yield name, layer
