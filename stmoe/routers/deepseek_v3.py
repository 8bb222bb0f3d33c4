"""DeepSeek-V3: sigmoid top-k with a selection bias instead of a strong balance loss (arXiv:2412.19437)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import balance
from stmoe.core import bias as bias_lib
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate


def deepseek_v3(logits: jax.Array, bias: jax.Array, mask: jax.Array, k: int, *, num_groups: int = 1,
                kept_groups: int | None = None, normalize_gates: bool = True, route_scale: float = 1.0,
                sequence: jax.Array | None = None, tokens: jax.Array | None = None,
                choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to the k experts of largest s + b, weighted by s (section 2.1.2).

  s are sigmoids. The bias chooses and nothing else: gates are s over the sum of the chosen s. Chosen are
  only experts of the `kept_groups` nodes whose two best s + b have the largest sum.

  Args:
    logits: f32[G,S,E]; bias: f32[E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    normalize_gates, route_scale: gates over their sum; then times the scale.
    sequence: i32[G,S] scope of the loss, see `balance.sequences`; None = a whole group.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  kept_groups = num_groups if kept_groups is None else kept_groups
  scores = jax.nn.sigmoid(logits)                                    # [G, S, E]
  biased = jax.lax.stop_gradient(scores) + bias
  reached = choices.within_groups(biased, num_groups, kept_groups, best=2)
  choice = (choose or choices.top)(reached, k)                       # [G, S, k]
  gates = choices.values(scores, choice)                             # not from `biased`
  if normalize_gates:
    gates = gates / (gates.sum(axis=-1, keepdims=True) + 1e-20)
  return bias_lib.decided(logits, scores, bias, choice, gates * route_scale, mask, sequence, tokens)


class DeepSeekV3(nnx.Module):
  """Routing of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2): sigmoid, bias, node-limited; dropless.

  Args:
    k:               choices per token.
    num_groups:      nodes: contiguous runs of at least two experts.
    kept_groups:     M, nodes a token may reach; None = all.
    normalize_gates: gates over their sum. With k = 1 gates are constant then, and the router learns
      from the balance loss only.
    route_scale:     factor of the gates (V3: 2.5).
    rate:            u, by which a bias moves after every optimizer step; 0.0 freezes it.
    centred:         steps of the bias have zero mean over experts.
    freeze_after:    optimizer steps after which the rate is 0 (V3: for its last 0.5T tokens); None = never.
  Losses: balance (the complementary sequence-wise loss; V3 weighs it with 1e-4).
  State: bias f32[E], moved by `bias_lib.update` once per optimizer step; updates i32[], how often.
  Differs: the paper gives a node the sum of its k / M best scores; both codes and this file add up two.
    The router starts at N(0, 0.02) like all of this project; the paper has 0.006.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               num_groups: ranges.Count = 1, kept_groups: ranges.Count | None = None,
               normalize_gates: ranges.Flag = True, route_scale: ranges.Positive = 1.0,
               rate: ranges.NonNegative = 1e-3, centred: ranges.Flag = False,
               freeze_after: ranges.Natural | None = None, rngs):
    kept_groups = num_groups if kept_groups is None else kept_groups
    choices.check_groups('deepseek_v3', num_experts, k, num_groups, kept_groups, least=2)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.bias = axes.state(jnp.zeros(num_experts), 'unmodeled')
    self.updates = axes.state(jnp.zeros((), jnp.int32))
    self.num_experts = num_experts
    self.k = k
    self.num_groups = num_groups
    self.kept_groups = kept_groups
    self.normalize_gates = normalize_gates or None                   # sigmoids are no softmax
    self.route_scale = route_scale
    self.gates_sum = route_scale if normalize_gates else None
    self.rate = rate
    self.centred = centred
    self.freeze_after = freeze_after

  def commit(self, aux: contract.Aux) -> None:
    """Moves the bias by the load of one optimizer step, aux.load f32[E]."""
    rate: float | jax.Array = self.rate
    if self.freeze_after is not None:
      rate = jnp.where(self.updates[...] < self.freeze_after, rate, 0.0)
    self.bias[...] = bias_lib.update(self.bias[...], aux.load, rate, self.centred)
    self.updates[...] += 1

  reach, logits = property(choices.reach), gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = deepseek_v3(
        logits, self.bias[...], ctx.mask, self.k, num_groups=self.num_groups, kept_groups=self.kept_groups,
        normalize_gates=bool(self.normalize_gates), route_scale=self.route_scale,
        sequence=balance.sequences(ctx.segments, ctx.positions), tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
