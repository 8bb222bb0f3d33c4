"""Plain SMoE: a biased linear gate, top-k, softmax over the chosen logits, nothing dropped."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def smoe(logits: jax.Array, mask: jax.Array, k: int, tokens: jax.Array | None = None,
         choose: contract.Choose | None = None, num_virtual: int = 0) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k largest logits, weighted by the softmax over those k.

  The baseline of MomentumSMoE (arXiv:2410.14574), FastMoE's naive gate. Nothing is dropped. The
  balance loss is E sum_e (n_e / (T k)) (sum_t p_te / (T k)) with p the softmax over all experts:
  `losses.balance` over k^2, 1 / k at perfect balance.

  Args:
    logits: f32[G,S,E], or f32[G,S,E+Z] with num_virtual = Z.
    mask:   bool[G,S] real tokens; padding goes nowhere.
    k:      choices per token.
    tokens: divisor of the losses, see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.choose)(probs, k)                      # [G, S, k]
  gates = jax.nn.softmax(choices.values(logits, choice), axis=-1)    # [G, S, k]
  num_experts = probs.shape[-1] - num_virtual
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, num_experts, num_virtual), mask)
  a = assignment.cap(edges, mask.shape[1])
  balance = losses.balance(probs, choice, mask, tokens) / k ** 2
  return a, contract.Aux(
      losses=dict(balance=balance, z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class SMoE(nnx.Module):
  """Dropless top-k routing with a biased gate (the SMoE of MomentumSMoE, arXiv:2410.14574).

  Args:
    k:        choices per token, at least 2.
    init_std: of the gate's weights; the released models have about 1 / sqrt(3 D).
    num_virtual: Z, how many of the experts are virtual; the layer says so.
  Losses: balance, z.
  Differs: the released scripts pass a balance coefficient of 0.01 that their gate never reads. So
    the published models have none: the coefficient is 0 unless a configuration sets it. Balance is
    per group of tokens, there over a microbatch. The gate starts normal with bias 0, there uniform.
  """

  normalize_gates = True             # by the softmax over a token's choices

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               init_std: ranges.NonNegative = 0.02, num_virtual=0, rngs):
    width = num_experts + num_virtual
    if not 2 <= k <= width:
      raise UserError(f'router smoe: k={k} with num_experts={num_experts}; k is at least 2 (the softmax over '
                      f'one choice is 1: such a router never learns) and at most {width}')
    self.w = gate.weights(d_model, width, rngs=rngs, init=nnx.initializers.normal(init_std))
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.num_virtual = num_virtual
    self.k = k

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    logits = gate.logits(x, self.w[...])
    return logits + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = smoe(logits, ctx.mask, self.k, ctx.tokens, choose, self.num_virtual)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
