"""Mixture-of-Supernets: one network whose weights are a mixture of weights, by a code of what it is to be.

Nothing is routed by tokens (arXiv:2306.04845). E sets of weights become one, W = sum_e r_e W_e. r is a
function of the architecture, or of another vector, such as that of a task or a language.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.parts import linear


def mixed(r: jax.Array, w: jax.Array) -> jax.Array:
  """Returns sum_e r_e w_e [...,O] of weights w [E,...,O]: r is [E], or [O,E], one mixture for every output.

  >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  >>> mixed(jnp.array([0.5, 0.5]), w).tolist(), mixed(jnp.array([[1.0, 0.0], [0.0, 1.0]]), w).tolist()
  ([2.0, 3.0], [1.0, 4.0])
  """
  return jnp.einsum('e,e...->...' if r.ndim == 1 else 'oe,e...o->...o', r, w)


# The code of width number `chosen` i32[] of `widths` [n], the largest last: f32[n], or f32[1].
CODES = dict(one_hot=lambda chosen, widths: jax.nn.one_hot(chosen, widths.size),
             share=lambda chosen, widths: (widths[chosen] / widths[-1])[None])


class Weights(nnx.Module):
  """E two-matrix networks, arrays with a leading E axis: wi [E,D,F], bi [E,F], wo [E,F,D], bo [E,D]."""

  def __init__(self, d_model: int, d_ff: int, num_experts: int, init_scale: float, *, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal', batch_axis=(0,))
    zeros = nnx.initializers.zeros
    inward, outward = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')
    self.wi = axes.param(init, (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.bi = axes.param(zeros, (num_experts, d_ff), 'expert', 'expert_mlp', rngs=rngs)
    self.wo = axes.param(init, (num_experts, d_ff, d_model), *outward, rngs=rngs)
    self.bo = axes.param(zeros, (num_experts, d_model), 'expert', 'expert_embed', rngs=rngs)


class Code(nnx.Module):
  """The router of a code a [n]: softmax(R a + c), or softmax(R relu(R1 a + c1) + c) with `hidden` units.

  One head [O,E] for every width O in `outputs`, O = 0 being one mixture [E] for all outputs.
  """

  def __init__(self, size: int, hidden: int, num_experts: int, outputs: tuple[int, ...], *, rngs):
    def matrix(rows, columns):
      init = nnx.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
      return axes.param(init, (rows, columns), 'unmodeled', 'unmodeled', rngs=rngs)
    bias = lambda columns: axes.param(nnx.initializers.zeros, (columns,), 'unmodeled', rngs=rngs)
    self.w0 = matrix(size, hidden) if hidden else None
    self.b0 = bias(hidden) if hidden else None
    columns = [num_experts * max(width, 1) for width in outputs]
    self.w = nnx.List([matrix(hidden or size, number) for number in columns])
    self.b = nnx.List([bias(number) for number in columns])
    self.outputs = outputs
    self.num_experts = num_experts

  def __call__(self, code: jax.Array) -> list[jax.Array]:
    """Returns r, [E] or [O,E], of every head for code [n]."""
    h = code
    if self.w0 is not None and self.b0 is not None:
      h = jax.nn.relu(code @ self.w0[...] + self.b0[...])
    logits = [h @ w[...] + b[...] for w, b in zip(self.w, self.b)]
    shape = lambda width: (width, self.num_experts) if width else (self.num_experts,)
    return [jax.nn.softmax(a.reshape(shape(width)), axis=-1) for a, width in zip(logits, self.outputs)]


class MixedWeights(nnx.Module):
  """act(x W1 + b1) W2 + b2 with W = sum_e r_e W_e (Mixture-of-Supernets, arXiv:2306.04845).

  The network is a supernet: of its F hidden units the first f are active, one of `widths`. Every call in
  training draws one, every call in evaluation has `width`. Its code says which. After training the mixture of
  a width is an ordinary dense layer, see `subnet`.

  Args:
    d_model, d_ff: D and F.
    num_experts: E, sets of weights.
    widths:      possible f; () = F alone, which needs another code.
    width:       f in evaluation; None = the largest.
    coding:      what code a width has: 'one_hot', a bit for each width; 'share', its part of the largest.
    given:       name of what a batch gives of its rows, [B,1,n], which is the code instead; each row then has
      a mixture of its own.
    code_size:   n of it.
    hidden:      units of the router's trunk; 0 = one layer.
    neuron:      a mixture for every unit, rows of W1 and of W2, instead of one for the layer.
    activation, init_scale: of the network.
  Differs: widths of the residual stream, which are the whole network's, are not sampled; nor are the largest
    and the smallest network trained in every step (u: sandwich rule). Microbatches draw their own widths. The
    released hard choice of one set of weights is not built.
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count, num_experts: ranges.Count = 2,
               widths: ranges.Many(ranges.Count) = (), width: ranges.Count | None = None,
               coding: ranges.Choice(*CODES) = 'one_hot',
               given: ranges.Text = '', code_size: ranges.Natural = 0, hidden: ranges.Natural = 64,
               neuron: ranges.Flag = False, activation: ranges.Activation = 'gelu',
               init_scale: ranges.Positive = 1.0, rngs):
    self.widths = tuple(sorted(widths)) or (d_ff,)
    self.width = self.widths[-1] if width is None else width
    if self.widths[-1] > d_ff:
      raise UserError(f'layer mixed_weights: widths={tuple(widths)} of d_ff={d_ff} units; nearest: {d_ff}')
    if self.width not in self.widths:
      near = min(self.widths, key=lambda f: abs(f - self.width))
      raise UserError(f'layer mixed_weights: width={width} is none of widths={self.widths}; nearest: {near}')
    if bool(given) != bool(code_size):
      raise UserError(f'layer mixed_weights: given={given!r} and code_size={code_size}: a code that is given '
                      'has a size, another one does not; nearest: both or neither')
    if given and coding != 'one_hot':
      raise UserError(f'layer mixed_weights: coding={coding!r} is of widths, and given={given!r} is another '
                      "code; nearest: coding='one_hot'")
    outputs = (d_ff, d_model) if neuron else (0,)
    self.experts = Weights(d_model, d_ff, num_experts, init_scale, rngs=rngs)
    self.coding = coding
    size = code_size or CODES[coding](0, np.array(self.widths)).size
    self.code = Code(size, hidden, num_experts, outputs, rngs=rngs)
    self.given = given
    self.code_size = code_size
    self.activation = activation
    self.products_per_row = 2 * d_model * d_ff                       # rows pass the mixture, not all E

  @property
  def reads(self) -> dict[str, tuple[int, ...]]:
    """Returns what of `Context.given` it reads: the code, where that is given."""
    return {self.given: (self.code_size,)} if self.given else {}

  def subnet(self, code: jax.Array) -> tuple[jax.Array, ...]:
    """Returns (wi [D,F], bi [F], wo [F,D], bo [D]) of code [n]; the first f units are those of a width f."""
    first, *others = self.code(code)
    second = others[0] if others else first
    w = self.experts
    return tuple(mixed(r, a[...]) for r, a in ((first, w.wi), (first, w.bi), (second, w.wo), (second, w.bo)))

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D]."""
    chosen = jnp.int32(self.widths.index(self.width))
    key = ctx.fold('width').key if ctx.train else None
    if key is not None:
      chosen = jax.random.randint(key, (), 0, len(self.widths))
    widths = jnp.array(self.widths)
    active = widths[chosen]                                          # f
    if not self.given:
      return self.run(x, CODES[self.coding](chosen, widths), active), None, carry
    code = ctx.known(self.given, 'layer mixed_weights')[:, 0]        # [B, n]
    return jax.vmap(self.run, in_axes=(0, 0, None))(x, code, active), None, carry

  def run(self, x: jax.Array, code: jax.Array, active: jax.Array | int) -> jax.Array:
    """Returns [...,D] of x [...,D] from the network of `code` [n] with `active` hidden units."""
    wi, bi, wo, bo = self.subnet(code)
    h = activations.named(self.activation)(linear.apply(x, wi, bi))  # [..., F]
    h = jnp.where(jnp.arange(h.shape[-1]) < active, h, 0)
    return linear.apply(h, wo, bo)
