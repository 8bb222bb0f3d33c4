"""AdvMoE: one expert, not weighted, with the gradient of the choice passed straight to its logit."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics


def adv_moe(logits: jax.Array, mask: jax.Array, tokens: jax.Array | None = None,
            choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its largest logit, of equal ones the first, with weight 1.

  The gradient to the weight goes to the chosen logit as it is (straight-through); other logits have none.
  Nothing is dropped.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  choice = (choose or choices.top)(logits, 1)                        # [G, S, 1]
  chosen = choices.values(logits, choice)
  weight = 1.0 + (chosen - jax.lax.stop_gradient(chosen))            # dL/ds = dL/d(one-hot)
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, logits.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  probs = jax.nn.softmax(logits, axis=-1)
  return a, contract.Aux(losses={}, load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class AdvMoE(nnx.Module):
  """Top-1 of x W + b without a gate (arXiv:2308.10110). In `models/resnet.py` x is a small network's output.

  Losses: none.
  """

  k = 1

  def __init__(self, d_model: int, *, num_experts: ranges.Count, rngs):
    # The default of the reference's linear layer: uniform up to 1 / sqrt(fan in), the bias as well.
    init = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -d_model ** -0.5,
                                                           d_model ** -0.5)
    self.w = gate.weights(d_model, num_experts, init=init, rngs=rngs)
    self.b = axes.param(uniform, (num_experts,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    return contract.Routed(*adv_moe(logits, ctx.mask, ctx.tokens, choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
