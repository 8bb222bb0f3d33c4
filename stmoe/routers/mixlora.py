"""MixLoRA: the k most probable experts with gates over their sum, or as many as exceed a probability
(arXiv:2404.15159)."""

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.routers import top_p_routing


def mixlora(logits: jax.Array, mask: jax.Array, k: int, *, tokens: jax.Array | None = None,
            choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k most probable experts, their gates over their sum.

  The gate of one choice is 1: then the balance loss alone trains the router. Nothing is dropped.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  gates = choices.values(probs, choice)
  gates = gates / gates.sum(axis=-1, keepdims=True)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class MixLoRA(nnx.Module):
  """The router of MixLoRA (arXiv:2404.15159), of a dense layer's adapters; see `layers/mixlora.py`.

  Args:
    k:        choices of a token, with gates over their sum.
    p:        or the fewest experts whose probabilities exceed p, with the probabilities as gates (the dynamic
      variant: 0.8). None = the k most probable.
    expected: with p, experts of a token on average, by which cost is counted; None = the most.
  Losses: balance, E sum_e f_e P_e with f the share of tokens that chose e: k at balance.
  Differs: the released code takes f and P over all layers and tokens of a batch. Here they are of a routing
    group of one layer: losses are then the same in microbatches.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count = 8, k: ranges.Count = 2,
               p: ranges.PartOf1 | None = None, expected: ranges.AtLeast1 | None = None, rngs):
    choices.check_k('mixlora', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.p = p
    self.k = k if p is None else top_p_routing.most_experts(p, num_experts)
    self.expected = expected
    self.normalize_gates = p is None
    self.needs_loss = ('balance',) if p is None and k == 1 else ()

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    if self.p is None:
      a, aux = mixlora(logits, ctx.mask, self.k, tokens=ctx.tokens, choose=choose)
    else:
      a, aux = top_p_routing.top_p_routing(logits, ctx.mask, self.p, self.k, expected=self.expected,
                                           tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
