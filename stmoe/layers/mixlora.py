"""MixLoRA: experts that are low-rank parts beside one dense layer (arXiv:2404.15159)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.layers import dense
from stmoe.layers import moe
from stmoe.parts import adapting
from stmoe.parts import linear
from stmoe.parts.adapters import lora

MATRICES = ('wi', 'wg', 'wo')            # of a dense layer


class Parts(nnx.Module):
  """The low-rank parts of E experts, one beside each chosen matrix of a dense layer: attributes like its.

  products_per_row: how many numbers multiply an expert's row: those of its parts and of the layer's wo.
  """

  label = 'adapter'

  def __init__(self, layer: dense.Dense, names: typing.Iterable[str], **fields):
    for name in names:
      setattr(self, name, adapting.LowRank(getattr(layer, name), **fields))
    low = [x for part in vars(self).values() if isinstance(part, adapting.LowRank) for x in (part.a, part.b)]
    self.products_per_row = sum(w.shape[-1] * w.shape[-2] for w in (*low, layer.wo))


class Network(nnx.Module):
  """The bank that executors run: dense layers that share all but the low-rank parts.

  A row is [x, x wi + bi, x wg + bg]: all experts of a token share these products.
  """

  def __init__(self, layer: 'MixLoRA'):
    self.parts, self.wo, self.bo = layer.experts, layer.wo, layer.bo
    # Norms are of whole matrices.
    self.wi: nnx.Variable | None = layer.wi if layer.dora else None
    self.wg: nnx.Variable | None = layer.wg if layer.dora else None
    self.gated, self.d_model = layer.wg is not None, layer.d_model
    self.activation, self.limit, self.dropout_rate = layer.activation, layer.limit, layer.dropout_rate

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D+F] or [.,D+2F] -> [.,D] in the same layout."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    x, *common = self._cut(rows)                                     # [., D], [., F] each
    h, *gate = (self._product(name, x, base, at) for name, base, at in zip(MATRICES, common, keys))
    act = activations.named(self.activation)
    h = h.map(lambda x, g: activations.gated(x, g, act, self.limit), *gate) if gate else h.map(act)
    h = h.map(lambda x: noise.dropout(x, self.dropout_rate, keys[2]))
    y = h.linear(self.wo[...], None if self.bo is None else self.bo[...])
    return self._product('wo', h, y, keys[3])                        # [., D]

  def _cut(self, rows):
    width = rows.x.shape[-1] - self.d_model
    borders = [0, self.d_model, *((self.d_model + width // 2, self.d_model + width) if self.gated else
                                  (self.d_model + width,))]
    return [rows.map(lambda z, first=first, last=last: z[..., first:last])
            for first, last in zip(borders, borders[1:])]

  def _product(self, name, x, base, key):
    """Rows `base`, which are x times the matrix `name`, with the expert's own part added."""
    part, w = getattr(self.parts, name, None), getattr(self, name)
    if part is None:
      return base
    matrix = part.beside(None if w is None else w.get_value(), name)
    return matrix.replace(key=key).added(base, x)


class MixLoRA(dense.Dense):
  """sum_e g_e FFN_e(x), FFN_e a dense layer whose matrices are W + s A_e B_e (arXiv:2404.15159).

  The arrays of the dense layer are called as those of `dense.Dense`, and do not train where only adapters do.
  The products with wi and wg are computed once for all experts of a token, the product with wo for each.

  Args:
    d_model, d_ff, activation, gated, use_bias, limit, init_scale, dropout_rate: see `dense.Dense`.
    router:          recipe of a router; its parameters belong to the adapter.
    targets:         which matrices have parts: 'wi', 'wg', 'wo' with + between them; '' = all.
    rank, alpha, rslora, dora, gaussian: see `parts/adapters/lora.py`.
    adapter_dropout: rate of dropout of what enters A, per element, in training only.
    jitter:          in training x is multiplied by U(1 - e, 1 + e), elementwise.
    executor, group_size: see `moe.Moe`.
  Differs: a bias is scaled by the ratio of `dora`, as in the released code.
  """

  unmergeable = 'experts of adapters are chosen for each token'

  def __init__(self, d_model: int, *, d_ff: ranges.Count, router: ranges.Named('router'),
               activation: ranges.Activation = 'silu', gated: ranges.Flag = True,
               use_bias: ranges.Flag = False, limit: ranges.Positive | None = None,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               targets: ranges.Text = '', rank: ranges.Count = 16, alpha: ranges.Any = 32.0,
               rslora: ranges.Flag = False, dora: ranges.Flag = False, gaussian: ranges.Flag = False,
               adapter_dropout: ranges.Below1 = 0.0, jitter: ranges.Below1 = 0.0,
               executor: ranges.Spelled('executor') = 'blocks', group_size: ranges.Count | None = None, rngs):
    super().__init__(d_model, d_ff=d_ff, activation=activation, gated=gated, dropout_rate=dropout_rate,
                     init_scale=init_scale, use_bias=use_bias, limit=limit, rngs=rngs)
    if rank > min(d_model, d_ff):
      raise UserError(f'layer mixlora: rank={rank} beside matrices of {d_model} x {d_ff}; nearest: '
                      f'{min(d_model, d_ff)}')
    self.router = checked.built(router, d_model, rngs)
    self.router.label = 'adapter'
    self.experts = Parts(
        self, chosen(self, targets), num_experts=self.router.num_experts, rank=rank,
        scale=lora.scale(alpha, rank, rslora), dropout_rate=adapter_dropout, gaussian=gaussian, dora=dora,
        rngs=rngs)
    sizes = lambda part: sum(w.size for w in jax.tree.leaves(part) if w.ndim == 2)
    self.router.products_per_row = sizes(nnx.state(self.router, nnx.Param))
    self.products_per_row = sizes((self.wi, self.wg))
    self.dora = dora
    self.jitter = jitter
    self.d_model = d_model
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    x = noise.jitter(x, self.jitter, ctx.fold('jitter').key if ctx.train else None)
    groups = moe.grouped(self, x, ctx, carry)
    routed = groups.route(self.router)
    matrices = [(w, b) for w, b in ((self.wi, self.bi), (self.wg, self.bg)) if w is not None]
    rows = jnp.concatenate([groups.x, *(linear.apply(groups.x, w, b) for w, b in matrices)], axis=-1)
    y = groups.execute(rows, routed.assignment, Network(self), groups.key('experts'))
    return groups.answer(y, routed)                                  # y [B, T, D]


def chosen(layer: dense.Dense, targets: str) -> list[str]:
  """Returns the names of the matrices of a dense layer that `targets` names, '' = all.

  Raises UserError for a name of none.
  """
  there = [name for name in MATRICES if getattr(layer, name) is not None]
  return [path[0] for path, _ in lora.matching(targets or '+'.join(there), [(name,) for name in there])]
