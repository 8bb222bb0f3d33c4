"""CompeteSMoE's router, and the steps in which its layers let all experts compete (arXiv:2402.02526)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics


def schedule(uniform: np.ndarray, rate: float, most: int) -> np.ndarray:
  """Returns bool[L,N]: whether each of L layers competes in each of N steps.

  In order of layers and steps a draw below `rate` competes, if fewer than `most` layers do in that step. Else
  it moves to the nearest earlier step with room where this layer does not compete yet. Without such a step it
  moves to the nearest later one, or is lost. A draw at a step that its layer has filled counts twice there.

  Args:
    uniform: f64[L,N] draws of U(0,1).
  """
  table = np.zeros(uniform.shape, bool)
  for own, drawn, above in zip(table, uniform < rate, range(len(table))):
    count = table[:above].sum(axis=0)                                # [N], of the layers before
    for step in np.flatnonzero(drawn):
      if count[step] >= most:
        free = (count < most) & ~own
        free[step] = False
        places = np.flatnonzero(free)
        if not len(places):
          continue
        earlier = places[places < step]
        step = earlier[-1] if len(earlier) else places[0]
      own[step] = True
      count[step] += 1
  return table


@functools.lru_cache(maxsize=8)
def table(seed: int, num_layers: int, steps: int, rate: float, most: int) -> np.ndarray:
  """Returns the schedule bool[L,N] of L = num_layers and N = steps, with draws of `seed`."""
  return schedule(np.random.default_rng(seed).random((num_layers, steps)), rate, most)


def compete_smoe(logits: jax.Array, mask: jax.Array, k: int, *, sequence: jax.Array | None = None,
                 tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k most probable experts, gates over their sum; dropless.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    sequence: i32[G,S] scope of the entropy loss, see `balance.sequences`; None = a whole group.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  gates = choices.values(probs, choice)
  gates = gates / gates.sum(axis=-1, keepdims=True)                  # of one choice 1: it learns by competing
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  entropy = balance.negative_entropy(balance.shares(probs, choice, mask, sequence), tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice[..., :1], mask, tokens),
                  z=losses.z(logits, mask, tokens), entropy=entropy),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class CompeteSMoE(nnx.Module):
  """The router of CompeteSMoE (arXiv:2402.02526), and the schedule of `layers/compete_smoe.py`.

  By itself it is plain top-k routing. The schedule follows from these fields alone, so that it is the same in
  every process and after every restart.

  Args:
    k:           choices per token.
    total_steps: length of training.
    num_layers: competing layers of the model, further ones never compete.
    rate:        chance that a layer competes in a step.
    warm_up:     share of the steps before the first competition.
    most:        layers that may compete in one step.
    seed:        of the schedule.
  Losses: balance (first choices), z, entropy (of sequences).
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               total_steps: ranges.Count = 100_000, num_layers: ranges.Count = 1, rate: ranges.Share = 0.07,
               warm_up: ranges.Below1 = 0.05, most: ranges.Count = 3, seed: ranges.Natural = 0, rngs):
    choices.check_k('compete_smoe', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.first = int(warm_up * total_steps)
    self.total_steps = total_steps
    self.drawn = (seed, num_layers, total_steps - self.first, rate, most)

  def competes(self, step: jax.Array, layer: jax.Array) -> jax.Array:
    """Returns bool[]: whether layer i32[] of the competing ones competes in optimizer step i32[]."""
    after = step - self.first
    return (after >= 0) & jnp.asarray(table(*self.drawn)).at[layer, after].get(mode='fill', fill_value=False)

  def share(self) -> float:
    """Returns the share of training steps in which a layer competes, the mean over layers."""
    return float(table(*self.drawn).sum(axis=1).mean() / self.total_steps)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = compete_smoe(logits, ctx.mask, self.k, sequence=balance.sequences(ctx.segments, ctx.positions),
                          tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
