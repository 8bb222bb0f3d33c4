"""A bank of feed-forward experts whose matrices are of low rank, or of low rank plus a sparse part."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.errors import UserError


class Factored(nnx.Module):
  """E matrices U V, or U V + S: u [E,in,r], v [E,r,out], s [E,in,out]."""

  def __init__(self, inward: tuple[int, str], outward: tuple[int, str], *, num_experts, rank, sparse,
               init_scale, rngs):
    (fan_in, of_in), (fan_out, of_out) = inward, outward
    # batch_axis: otherwise E counts into the fan. The variance of an entry of U V is init_scale / fan_in.
    init = lambda scale: nnx.initializers.variance_scaling(scale, 'fan_in', 'normal', batch_axis=(0,))
    left, right = ('expert', of_in, 'unmodeled'), ('expert', 'unmodeled', of_out)
    self.u = axes.param(init(1.0), (num_experts, fan_in, rank), *left, rngs=rngs)
    self.v = axes.param(init(init_scale), (num_experts, rank, fan_out), *right, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.s = axes.param(zeros, (num_experts, fan_in, fan_out), 'expert', of_in, of_out, label='sparse',
                        rngs=rngs) if sparse else None

  def __call__(self, rows: contract.Rows, bias: jax.Array | None = None) -> contract.Rows:
    """Returns the rows times the matrix of their expert, plus bias [E,out]: [.,in] -> [.,out]."""
    low = rows.linear(self.u[...]).linear(self.v[...], bias)
    if self.s is None:
      return low
    return rows.linear(self.s[...]).map(lambda y, added: y + added, low)


class LowRank(nnx.Module):
  """E networks act(x Wi + bi) Wo + bo, or (act(x Wi) * x Wg) Wo, of matrices W = U V + S.

  `stmoe compress` makes such banks. The parts S have the label `sparse`: with `groups.sparse.pruned` of a
  configuration their rows are pruned in training (MC-SMoE, arXiv:2310.01334).

  Args:
    d_model, d_ff: D and F.
    rank:          r, at most the smaller of D and F.
    sparse:        with S, initially 0.
    activation:    name of a function, see `core/units/activations.py`.
    gated:         with Wg.
    use_bias:      with bi [E,F] and bo [E,D], initially 0.
    dropout_rate:  expert dropout: on the hidden activation, per element, in training only.
    init_scale:    variance scale s of sqrt(s / fan_in) of the matrices.
    limit:         L of `activations.gated`; None = without.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, rank: ranges.Count,
               sparse: ranges.Flag = False, activation: ranges.Activation = 'relu',
               gated: ranges.Flag = False, use_bias: ranges.Flag = False,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               limit: ranges.Positive | None = None, rngs):
    if rank > min(d_model, d_ff):
      raise UserError(f'experts low_rank: rank={rank} of matrices {d_model} x {d_ff}; nearest: '
                      f'{min(d_model, d_ff)}')
    fields = dict(num_experts=num_experts, rank=rank, sparse=sparse, init_scale=init_scale, rngs=rngs)
    narrow, wide = (d_model, 'expert_embed'), (d_ff, 'expert_mlp')
    self.wi = Factored(narrow, wide, **fields)
    self.wg = Factored(narrow, wide, **fields) if gated else None
    self.wo = Factored(wide, narrow, **fields)
    zeros = nnx.initializers.zeros
    bias = lambda size, name: axes.param(zeros, (num_experts, size), 'expert', name, rngs=rngs)
    self.bi = bias(d_ff, 'expert_mlp') if use_bias else None
    self.bo = bias(d_model, 'expert_embed') if use_bias else None
    self.activation = activation
    self.dropout_rate = dropout_rate
    self.limit = limit

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    activation = activations.named(self.activation)
    bi, bo = (b if b is None else b[...] for b in (self.bi, self.bo))
    h = self.wi(rows, bi)                                            # [., F]
    if self.wg is None:
      h = h.map(activation)
    else:
      h = h.map(lambda x, g: activations.gated(x, g, activation, self.limit), self.wg(rows))
    h = h.map(lambda x: noise.dropout(x, self.dropout_rate, key))
    return self.wo(h, bo)                                            # [., D]
