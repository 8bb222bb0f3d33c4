"""A bank of feed-forward experts that share one network and differ by low-rank parts (LoRA)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations


class Adapted(nnx.Module):
  """E matrices W + (alpha / r) A B: w [in,out] of all experts, a [E,in,r] and b [E,r,out] of each.

  A is drawn from U(-1/sqrt(in), 1/sqrt(in)), B is 0 at first (LoRA, arXiv:2106.09685).
  """

  def __init__(self, inward: tuple[int, str], outward: tuple[int, str], *,
               num_experts, rank, alpha, dropout_rate, init_scale, rngs):
    (fan_in, of_in), (fan_out, of_out) = inward, outward
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal')
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -fan_in ** -0.5, fan_in ** -0.5)
    down, up = (num_experts, fan_in, rank), (num_experts, rank, fan_out)
    self.w = axes.param(init, (fan_in, fan_out), of_in, of_out, rngs=rngs)
    self.a = axes.param(uniform, down, 'expert', of_in, 'unmodeled', label='adapter', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, up, 'expert', 'unmodeled', of_out, label='adapter', rngs=rngs)
    self.scale = alpha / rank
    self.dropout_rate = dropout_rate

  def __call__(self, rows: contract.Rows, key: jax.Array | None) -> contract.Rows:
    """Returns the rows times the matrix of their expert: [.,in] -> [.,out] in the same layout."""
    dropped = rows.map(lambda x: noise.dropout(x, self.dropout_rate, key)) if self.dropout_rate else rows
    added = dropped.linear(self.a[...]).linear(self.b[...])
    return rows.linear(self.w[...]).map(lambda y, d: y + self.scale * d, added)


class Lora(nnx.Module):
  """E networks (act(x Wi) * x Wg) Wo that share W and have low-rank parts of their own (arXiv:2404.15159).

  At first all experts are the shared network. The low-rank parts have the label `adapter`. Section `groups`
  of the configuration says what else trains.

  Args:
    d_model, d_ff: D and F.
    rank, alpha:   r and alpha of W + (alpha / r) A B.
    activation:    name of a function, see `core/units/activations.py`: 'silu' for SwiGLU.
    gated:         with Wg; otherwise act(x Wi) Wo.
    dropout_rate:  of what enters a low-rank part, per element, in training only.
    init_scale:    variance scale s of sqrt(s / fan_in) of the shared network.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, rank: ranges.Count = 16,
               alpha: ranges.Any = 32.0, activation: ranges.Activation = 'silu', gated: ranges.Flag = True,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.NonNegative = 1.0, rngs):
    fields = dict(num_experts=num_experts, rank=rank, alpha=alpha, dropout_rate=dropout_rate,
                  init_scale=init_scale, rngs=rngs)
    narrow, wide = (d_model, 'expert_embed'), (d_ff, 'expert_mlp')
    self.wi = Adapted(narrow, wide, **fields)
    self.wg = Adapted(narrow, wide, **fields) if gated else None
    self.wo = Adapted(wide, narrow, **fields)
    self.activation = activation

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    activation = activations.named(self.activation)
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    h = self.wi(rows, keys[0]).map(activation)                       # [., F]
    if self.wg is not None:
      h = h.map(lambda x, g: x * g, self.wg(rows, keys[1]))
    return self.wo(h, keys[2])                                       # [., D]
