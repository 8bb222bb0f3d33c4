"""ZAYA's router: a small network on a vector that gathers over depth, with an expert that skips the layer.

The source is a reading note of the code in transformers. What the note leaves open is marked (unverified).
"""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import bias as bias_lib
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics

EPSILON = 1e-6                         # of the norm (unverified)


def zaya(logits: jax.Array, bias: jax.Array, mask: jax.Array, k: int, num_virtual: int = 0,
         tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k experts of largest p + b, weighted by p alone.

  p is the softmax over real and virtual experts. The output of a skip expert is 0, whatever its p.

  Args:
    logits: f32[G,S,E+Z]; bias: f32[E+Z], chooses and nothing else; mask: bool[G,S] real tokens.
    num_virtual: Z; tokens: see `losses.token_mean`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E+Z]
  choice = choices.top(jax.lax.stop_gradient(probs) + bias, k)       # [G, S, k]
  edges = assignment.from_choices(choice, choices.values(probs, choice), probs.shape[-1] - num_virtual,
                                  num_virtual)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, edges.num_tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens)),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens), bias_abs_max=jnp.abs(bias).max()))


class Zaya(nnx.Module):
  """r = x W + c + lambda * r of the sparse layer below; logits = MLP(RMSNorm(r)); dropless.

  The MLP has two GELU layers of the width of r and a linear one. The skip expert is a virtual expert of the
  layer: virtual=('zero',).

  Args:
    k:         choices per token (unverified).
    hidden:    R, width of r (unverified); sparse layers of one width pass r on.
    passing:   whether r is passed on; the note's model passes it on.
    use_bias:  c, and biases of the MLP.
    skip_bias: where the bias of virtual experts begins. At -1 no token skips until biases have moved.
    rate:      by which a selection bias moves after every optimizer step; 0.0 freezes it.
    num_virtual: Z, how many of the experts are virtual; the layer says so.
  Losses: balance (of Switch, to be seen; the note names no loss).
  State: bias f32[E+Z], at first 0, but for virtual experts. The note says no rule by which it moves; the sign
    rule of loss-free balancing over all E + Z experts is ours.
  Differs: lambda [R] of the first sparse layer multiplies zeros, the code has none there. FLOPs count
    k E / (E + Z) experts of a token, as under balance; metric active_experts has the true mean, k at first.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 1,
               hidden: ranges.Count = 256, passing: ranges.Flag = True, use_bias: ranges.Flag = True,
               skip_bias: ranges.Any = -1.0, rate: ranges.NonNegative = 1e-3, num_virtual=0, rngs):
    choices.check_k('zaya', k, num_experts, num_virtual)
    lecun, all_experts = nnx.initializers.lecun_normal(), num_experts + num_virtual
    inner = lambda: axes.param(lecun, (hidden, hidden), 'unmodeled', 'unmodeled', rngs=rngs)
    vector = lambda init: axes.param(init, (hidden,), 'unmodeled', rngs=rngs)
    self.w_in = axes.param(lecun, (d_model, hidden), 'embed', 'unmodeled', rngs=rngs)
    self.scale = vector(nnx.initializers.ones)
    self.w1, self.w2 = inner(), inner()
    self.w = axes.param(gate.INIT, (hidden, all_experts), 'unmodeled', 'unmodeled', rngs=rngs)
    zeros = nnx.initializers.zeros
    self.b_in, self.b1, self.b2 = (vector(zeros) if use_bias else None for _ in range(3))
    self.memory = vector(nnx.initializers.ones) if passing else None               # lambda
    self.bias = axes.state(jnp.where(jnp.arange(all_experts) < num_experts, 0.0, skip_bias), 'unmodeled')
    self.num_experts, self.num_virtual, self.k, self.hidden = num_experts, num_virtual, k, hidden
    self.rate = rate
    self.name = f'zaya_{hidden}'          # in the carry

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns r below the first sparse layer, f32[B,T,R] zeros; nothing without passing."""
    if self.memory is None:
      return {}
    return {self.name: jnp.zeros((*x.shape[:2], self.hidden), jnp.float32)}

  def commit(self, aux: contract.Aux) -> None:
    """Moves the bias by the load f32[E+Z] of a whole step."""
    self.bias[...] = bias_lib.update(self.bias[...], aux.load, self.rate)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    plus = lambda y, b: y if b is None else y + b[...]
    r = plus(gate.logits(x, self.w_in[...]), self.b_in)              # [G, S, R]
    if self.memory is not None:
      r = r + carry[self.name] * self.memory[...]
      carry = carry | {self.name: r}                                 # after the addition
    h = r * jax.lax.rsqrt(jnp.mean(jnp.square(r), axis=-1, keepdims=True) + EPSILON) * self.scale[...]
    for w, b in ((self.w1, self.b1), (self.w2, self.b2)):
      h = jax.nn.gelu(plus(gate.logits(h, w[...]), b), approximate=False)
    a, aux = zaya(gate.logits(h, self.w[...]), self.bias[...], ctx.mask, self.k, self.num_virtual, ctx.tokens)
    return contract.Routed(a, aux, carry)
