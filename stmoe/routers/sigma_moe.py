"""σ-MoE: every expert by a sigmoid of its own, top-k, gates not normalised (arXiv:2310.10837)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics


def sigma_moe(logits: jax.Array, mask: jax.Array, k: int, absent: jax.Array | None = None,
              sequence: jax.Array | None = None, tokens: jax.Array | None = None,
              choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k largest sigmoids, which are the weights. Nothing is dropped.

  The entropy loss is sum_e P_e ln P_e of every sequence. P is the mean over its tokens of softmax(logits).
  The loss is least, -ln E, where experts are equally probable over a sequence, however sure each token is.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens.
    k:      choices per token.
    absent: bool[G,S,E] experts that a token cannot choose this time (expert dropout), or None.
    sequence: i32[G,S] scope of the loss, see `balance.sequences`; None = a whole group.
    tokens: divisor of the loss, see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  Differs: sequences count by their tokens; the released code's mean has equal weights and equal lengths.
  """
  scores = jax.nn.sigmoid(logits)                                    # [G, S, E]
  choice = (choose or choices.top)(scores if absent is None else jnp.where(absent, -1, scores), k)
  edges = assignment.from_choices(choice, choices.values(scores, choice), logits.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, edges.num_tokens)
  probs = jax.nn.softmax(logits, axis=-1)
  return a, contract.Aux(
      losses=dict(entropy=balance.negative_entropy(balance.shares(probs, choice, mask, sequence), tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


def equal_rows(init: typing.Callable[..., jax.Array]) -> typing.Callable[..., jax.Array]:
  """Returns `init` of matrices [D,E] with all columns scaled to one length; the deviation stays."""
  def make(key, shape, dtype):
    w = init(key, shape, dtype)
    unit = w / jnp.linalg.norm(w, axis=0)
    return unit * (w.std() / unit.std())
  return make


class SigmaMoE(nnx.Module):
  """Routing of σ-MoE (arXiv:2310.10837): sigmoids, top-k, entropy loss of a sequence; dropless.

  Args:
    k:              choices per token.
    expert_dropout: in training an expert is absent for a token with this probability.
    init_scale:     s of the deviation sqrt(s / D) of the weights; all experts' vectors are equally long.
  Losses: entropy.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               expert_dropout: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0, rngs):
    choices.check_k('sigma_moe', k, num_experts)
    init = nnx.initializers.normal((init_scale / d_model) ** 0.5)
    self.w = gate.weights(d_model, num_experts, rngs=rngs, init=equal_rows(init))
    self.num_experts = num_experts
    self.k = k
    self.expert_dropout = expert_dropout

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    key = ctx.fold('absent').key if ctx.train and self.expert_dropout else None
    absent = None if key is None else jax.random.bernoulli(key, self.expert_dropout, logits.shape)
    a, aux = sigma_moe(logits, ctx.mask, self.k, absent, balance.sequences(ctx.segments, ctx.positions),
                       ctx.tokens, choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
