"""Dynamic-DINO: the k best experts with gates of mean 1, for experts that are slices of a network."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics


def scaled(chosen: jax.Array) -> jax.Array:
  """Returns f32[...,k], k times the softmax of the k chosen logits f32[...,k]: 1 where these are equal."""
  return chosen.shape[-1] * jax.nn.softmax(chosen, axis=-1)


# What weighs the chosen experts, of their logits f32[G,S,k].
GATES = {'scaled': scaled, 'ungated': jnp.ones_like}


def dynamic_dino(logits: jax.Array, mask: jax.Array, k: int, gates: str = 'scaled',
                 tokens: jax.Array | None = None,
                 choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k largest logits, of equal ones the first; nothing is dropped.

  The balance loss is E sum_e f_e P_e, f the share of all k choices: 1 at balance.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    gates:  a key of GATES.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(logits, k)                        # [G, S, k]
  weight = choices.named(GATES, gates, 'gates')(choices.values(logits, choice))
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, logits.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  balance = losses.balance(probs, choice, mask, tokens) / choice.shape[-1]
  return a, contract.Aux(losses=dict(balance=balance), load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class DynamicDino(nnx.Module):
  """Top-k of x R without bias, with gates k softmax(chosen logits) (arXiv:2507.17436).

  `stmoe factorise RUN dynamic_dino` begins with k equal columns of R for the k slices of a copy of a network:
  their gates are 1, and the output is the network's. A single choice always has gate 1.

  Args:
    k:     choices of a token.
    gates: 'scaled', or 'ungated': 1. Only the balance loss then trains the router.
  Losses: balance; the paper's coefficient is 0.01.
  Differs: the paper's gate could not be read. Both forms here keep the function at the start (u). So does
    the form of the balance loss (u).
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               gates: ranges.Choice(*GATES) = 'scaled', rngs):
    choices.check_k('dynamic_dino', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = self.gates_sum = k
    self.gates = gates
    self.needs_loss = ('balance',) if gates == 'ungated' or k == 1 else ()

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = dynamic_dino(logits, ctx.mask, self.k, self.gates, ctx.tokens, choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
