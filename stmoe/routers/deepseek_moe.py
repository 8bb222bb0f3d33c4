"""DeepSeekMoE and DeepSeek-V2: softmax top-k of many narrow experts, limited to few devices
(arXiv:2401.06066, arXiv:2405.04434)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics
from stmoe.core.units import counting
from stmoe.errors import UserError

EXEMPT = 0.1                           # share of sequences that are never dropped (V2, section 2.2.4)


def deepseek_moe(logits: jax.Array, mask: jax.Array, k: int, *, num_groups: int = 1,
                 kept_groups: int | None = None, normalize_gates: bool = False, route_scale: float = 1.0,
                 sequence: jax.Array | None = None, budget: float | None = None,
                 exempt: jax.Array | None = None, tokens: jax.Array | None = None,
                 choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k most probable experts (V1, section 3; V2, section 2.2).

  The gates are the probabilities themselves, as softmax over all E experts gave them. So
  their sum keeps its gradient. With groups, a token's experts are on the `kept_groups` devices
  whose best expert is most probable.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    normalize_gates, route_scale: gates over their sum; then times the scale.
    sequence: i32[G,S] scope of the losses, see `balance.sequences`; None = a whole group.
    budget:   choices that one device takes; None = all.
    exempt:   bool[G,S] tokens that no budget drops; None = no token.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  kept_groups = num_groups if kept_groups is None else kept_groups
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  reached = choices.within_groups(probs, num_groups, kept_groups)
  choice = (choose or choices.top)(reached, k)                       # [G, S, k]
  gates = choices.values(probs, choice)
  gates = (choices.normalize(gates) if normalize_gates and k > 1 else gates) * route_scale
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  exempt = jnp.zeros_like(mask) if exempt is None else exempt
  kept = edges if budget is None else within_budget(edges, num_groups, budget, exempt)
  a = assignment.cap(kept, edges.num_tokens)
  shares = balance.shares(probs, choice, mask, sequence)
  return a, contract.Aux(
      losses=dict(balance=balance.expert_loss(shares, tokens),
                  device=balance.device_loss(shares, num_groups, tokens),
                  communication=balance.communication_loss(shares, choice, mask, sequence, num_groups,
                                                           kept_groups, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


def within_budget(edges: assignment.Edges, num_groups: int, budget: float,
                  exempt: jax.Array) -> assignment.Edges:
  """Returns `edges` less the edges of least affinity on devices that got more than `budget` edges.

  Device-level token dropping (V2, section 2.2.4). The edges of exempt tokens (bool[G,S]) come first
  and are never dropped, even if they alone are more than the budget.
  """
  device = jnp.where(assignment.live(edges), edges.expert * num_groups // edges.num_experts, num_groups)
  spared = jnp.take_along_axis(exempt, edges.token, axis=1)          # [G, N]
  order = jnp.lexsort((-jax.lax.stop_gradient(edges.weight), ~spared), axis=-1)    # [G, N]
  return assignment.kill(edges, spared | (counting.rank_in_expert(device, num_groups + 1, order) < budget))


class DeepSeekMoE(nnx.Module):
  """Routing of fine-grained experts (V1: arXiv:2401.06066; V2: arXiv:2405.04434); dropless unless budgeted.

  Args:
    k:               choices per token.
    num_groups:      D, devices: contiguous runs of experts that the device losses speak of.
    kept_groups:     M, devices a token may reach; None = all (V1).
    normalize_gates: gates over their sum; the paper's are the raw probabilities.
    route_scale:     factor of the gates (V2: 16, V2-Lite: 1).
    use_bias:        adds a learned b [E], initially 0, to the logits (gpt-oss).
    scope:           'sequence' (V2; the released 16B) or 'group': what the losses count over.
    device_budget:   in training a device takes this factor of its equal share of the choices, the
      most probable first. A tenth of the sequences keep all choices, none without a key (V2: 1.0); None =
      all. Not causal.
    allow_causal:    accept a device budget where a token then depends on later tokens.
  Losses: balance, device, communication.
  Differs: the router starts at N(0, 0.02) like all of this project; the paper has 0.006. A device's
    budget is counted per routing group, not per batch. That exempt tokens use it first is our reading.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               num_groups: ranges.Count = 1, kept_groups: ranges.Count | None = None,
               normalize_gates: ranges.Flag = False, route_scale: ranges.Positive = 1.0,
               use_bias: ranges.Flag = False,
               scope: ranges.Choice('sequence', 'group') = 'sequence',
               device_budget: ranges.Positive | None = None, allow_causal: ranges.Flag = False, rngs):
    kept_groups = num_groups if kept_groups is None else kept_groups
    choices.check_groups('deepseek_moe', num_experts, k, num_groups, kept_groups)
    choices.named(dict(sequence=0, group=0), scope, 'scope')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.b = axes.param(zeros, (num_experts,), 'unmodeled', rngs=rngs) if use_bias else None
    self.num_experts = num_experts
    self.k = k
    self.num_groups = num_groups
    self.kept_groups = kept_groups
    self.normalize_gates = normalize_gates or (False if route_scale == 1 else None)
    self.route_scale = route_scale
    self.gates_sum = route_scale if normalize_gates and k > 1 else None
    self.scope = scope
    self.device_budget = device_budget
    self.allow_causal = allow_causal

  reach = property(choices.reach)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]: x w + b."""
    logits = gate.plain(self, x, ctx)
    return logits if self.b is None else logits + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; raises UserError for a device budget in a causal stack."""
    if self.device_budget is not None and ctx.causal and not self.allow_causal:
      raise UserError('router deepseek_moe: device_budget lets later tokens decide in a causal stack; '
                      'nearest: device_budget=None (or allow_causal=True)')
    sequence = balance.sequences(ctx.segments, ctx.positions)        # [G, S]
    budget = exempt = None
    if self.device_budget is not None and ctx.train:
      budget = round(self.device_budget * self.k * logits.shape[1] / self.num_groups)
      drawn = choices.draw(ctx.fold('exempt').key, *sequence.shape)  # one draw for every sequence
      exempt = None if drawn is None else jnp.take_along_axis(drawn < EXEMPT, sequence, axis=1)
    a, aux = deepseek_moe(
        logits, ctx.mask, self.k, num_groups=self.num_groups, kept_groups=self.kept_groups,
        normalize_gates=bool(self.normalize_gates), route_scale=self.route_scale,
        sequence=sequence if self.scope == 'sequence' else None, budget=budget, exempt=exempt,
        tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
