"""DynMoLE: a dense layer, a router and low-rank experts beside each of its matrices (arXiv:2504.00661)."""

from flax import nnx
import jax

from stmoe import lookup
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.layers import dense
from stmoe.layers import mixlora
from stmoe.layers import moe
from stmoe.parts import adapting
from stmoe.parts import linear
from stmoe.parts.adapters import lora


class Part(nnx.Module):
  """A bank of E maps s B_e A_e beside one matrix."""

  label = 'adapter'

  def __init__(self, low: adapting.LowRank):
    self.low = low

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,F] in the same layout."""
    dropped = rows.map(lambda x: noise.dropout(x, self.low.dropout_rate, key))
    y = dropped.linear(self.low.a[...]).linear(self.low.b[...])      # [., F]
    return y.map(lambda y: self.low.scale * y)


class Mixture(nnx.Module):
  """sum_e p_e s B_e A_e x of one matrix: what is added to its product with x."""

  def __init__(self, w: nnx.Variable, *, router, executor: str, group_size: int | None, rngs, **fields):
    self.d_model = w.shape[-2]
    self.router = checked.built(router, self.d_model, rngs)
    self.router.label = 'adapter'
    self.experts = Part(adapting.LowRank(w, num_experts=self.router.num_experts, rngs=rngs, **fields))
    self.executor, self.group_size = executor, group_size

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (what is added [B,T,F], aux, carry) for x [B,T,D]."""
    groups = moe.grouped(self, x, ctx, carry)
    routed = groups.route(self.router)
    y = groups.execute(groups.x, routed.assignment, self.experts, groups.key('experts'))
    return groups.answer(y, routed)                                  # [B, T, F]


class DynMoLE(dense.Dense):
  """A dense layer whose matrices are W x + sum_e p_e s B_e A_e x, each with a router (arXiv:2504.00661).

  The arrays of the dense layer are called as those of `dense.Dense`, and do not train where only adapters do.

  Args:
    d_model, d_ff, activation, gated, use_bias, limit, init_scale, dropout_rate: see `dense.Dense`.
    router:          recipe of the routers; their parameters belong to the adapter.
    targets:         which matrices have experts: 'wi', 'wg', 'wo' with + between them; '' = all.
    rank, alpha, rslora, gaussian: see `parts/adapters/lora.py`.
    adapter_dropout: rate of dropout of what enters A, per element, in training only.
    executor, group_size: see `moe.Moe`.
  """

  unmergeable = 'experts of adapters are chosen for each token'

  def __init__(self, d_model: int, *, d_ff: ranges.Count, router: ranges.Named('router'),
               activation: ranges.Activation = 'silu', gated: ranges.Flag = True,
               use_bias: ranges.Flag = False, limit: ranges.Positive | None = None,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               targets: ranges.Text = '', rank: ranges.Count = 24, alpha: ranges.Any = 48.0,
               rslora: ranges.Flag = False, gaussian: ranges.Flag = False,
               adapter_dropout: ranges.Below1 = 0.0, executor: ranges.Spelled('executor') = 'blocks',
               group_size: ranges.Count | None = None, rngs):
    super().__init__(d_model, d_ff=d_ff, activation=activation, gated=gated, dropout_rate=dropout_rate,
                     init_scale=init_scale, use_bias=use_bias, limit=limit, rngs=rngs)
    if rank > min(d_model, d_ff):
      raise UserError(f'layer dynmole: rank={rank} beside matrices of {d_model} x {d_ff}; nearest: '
                      f'{min(d_model, d_ff)}')
    lookup.executor(executor)
    names = mixlora.chosen(self, targets)
    for name in names:
      setattr(self, _beside(name), Mixture(
          getattr(self, name), router=router, executor=executor, group_size=group_size, rank=rank,
          scale=lora.scale(alpha, rank, rslora), dropout_rate=adapter_dropout, gaussian=gaussian, rngs=rngs))
    self.reports = tuple(map(_beside, names))

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], dict of Aux by matrix, carry) for x [B,T,D]."""
    reports: dict[str, contract.Aux] = {}
    activation = activations.named(self.activation)
    h, carry = self._product('wi', x, ctx, carry, reports)           # [B, T, F]
    if self.wg is None:
      h = activation(h)
    else:
      gate, carry = self._product('wg', x, ctx, carry, reports)
      h = activations.gated(h, gate, activation, self.limit)
    h = noise.dropout(h, self.dropout_rate, ctx.fold('hidden').key if ctx.train else None, (-2,))
    y, carry = self._product('wo', h, ctx, carry, reports)           # [B, T, D]
    return y, reports, carry

  def _product(self, name, x, ctx, carry, reports):
    """(x times the matrix `name` with what its experts add, carry); their Aux goes into `reports`."""
    y, beside = linear.apply(x, getattr(self, name), getattr(self, f'b{name[1:]}')), _beside(name)
    if beside not in self.reports:
      return y, carry
    added, reports[beside], carry = getattr(self, beside)(x, ctx.fold(beside), carry)
    return y + added, carry


def _beside(name):
  """The name of the part beside the matrix `name`."""
  return f'{name}_experts'
