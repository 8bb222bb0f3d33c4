"""GRIN, or SparseMixer-v2: each choice drawn anew, with Heun's third-order gradient (arXiv:2409.12136)."""

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
from stmoe.core import noise
from stmoe.routers import sparsemixer

THIRD = 0.3333                       # 1/3, as the released code rounds it


def pick(rest: jax.Array, logits: jax.Array, epsilon: float, draws: tuple[jax.Array, jax.Array] | None = None,
         given: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns one choice: (expert i32[G,S], gate f32[G,S], number of contenders f32[G,S]).

  Heun's rule L(y) - L(0) = L'(y) y / 4 + 3 L'(y/3) y / 4 asks for y/3 in three of four cases. So a coin
  scales the gate to a third, and its gradient stays that of the whole gate. An argmax is never scaled.

  Args:
    rest:   f32[G,S,E] `logits` with -inf at the choices made; logits: f32[G,S,E].
    draws:  (f32[G,S,E] of Exp(1), f32[G,S] of U(0,1)), or None.
    given:  i32[G,S] the expert, where it is not to be chosen; then nothing is scaled.
  """
  kept = sparsemixer.contenders(rest, logits, epsilon)
  probs = jax.nn.softmax(kept, axis=-1)                              # [G, S, E], of this choice alone
  expert = sparsemixer.race(kept, draws and draws[0]) if given is None else given
  value = choices.values(probs, expert[..., None])[..., 0]           # [G, S]
  if draws is not None and given is None:
    whole = (expert == choices.best(probs)) | (draws[1] > 0.75)
    value = sparsemixer.with_slope(value, jnp.where(whole, 1.0, THIRD), 1.0)
  return expert, value, jnp.sum(kept > -jnp.inf, axis=-1, dtype=jnp.float32)


def grin(logits: jax.Array, mask: jax.Array, capacity: int, k: int, *, epsilon: float,
         draws: tuple[jax.Array, jax.Array] | None = None, tokens: jax.Array | None = None,
         choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): k times, each token to an expert drawn from the softmax of its contenders.

  Every choice has contenders and a softmax of its own, without the earlier choices. Its gate is its own
  probability. Gates are never divided by their sum: each is 1 where one contender is left.

  Args:
    logits:   f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    k:        choices per token; published are 1 and 2.
    epsilon:  see `sparsemixer.contenders`.
    draws:    (f32[G,S,k,E] of Exp(1), f32[G,S,k] of U(0,1)); None = the argmax and its plain gradient.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  given = choose(probs, k) if choose else None
  rest, picks = logits, []
  for level in range(k if given is None else given.shape[-1]):
    picks.append(pick(rest, logits, epsilon, draws and (draws[0][..., level, :], draws[1][..., level]),
                      None if given is None else given[..., level]))
    rest = jnp.where(jax.nn.one_hot(picks[-1][0], probs.shape[-1], dtype=bool), -jnp.inf, rest)
  choice, gates, number = (jnp.stack(each, axis=-1) for each in zip(*picks))       # [G, S, k] each
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens),
                   contenders=losses.token_mean(number.mean(axis=-1), mask, tokens)))


class Grin(nnx.Module):
  """Routing of GRIN and Phi-3.5-MoE (arXiv:2409.12136): two draws in training, two argmaxes in evaluation.

  Args:
    k:               choices per token.
    epsilon:         half the relative window of `sparsemixer.contenders`, in evaluation, too (Phi: 0.01, its
      `router_jitter_noise`). At 0 every gate is 1, and the router learns nothing but from its losses.
    input_jitter:    in training the router sees x * U(1 - input_jitter, 1 + input_jitter).
    capacity_factor: (train, eval) slots per token; None = nothing is dropped, as GRIN was trained.
    greedy:          training chooses as evaluation does, with the plain gradient of the gates.
  Losses: balance (of all choices and the softmax of all logits: k at balance), z.
  Differs: which choices count for the balance loss is not known: all do. Phi's code, where it has jitter
    (off by default), shows the jittered input to experts as well (unverified).
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               epsilon: ranges.NonNegative = 0.1, input_jitter: ranges.Below1 = 0.0,
               capacity_factor: ranges.Factors = (None, None), greedy: ranges.Flag = False, rngs):
    choices.check_k('grin', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.epsilon = epsilon
    self.input_jitter = input_jitter
    self.capacity_factor = tuple(capacity_factor)
    self.greedy = greedy

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    key = ctx.fold('jitter').key if ctx.train else None
    return gate.logits(noise.jitter(x.astype(jnp.float32), self.input_jitter, key), self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    shape = (*logits.shape[:2], self.k, self.num_experts)
    a, aux = grin(logits, ctx.mask, capacity, self.k, epsilon=self.epsilon, tokens=ctx.tokens, choose=choose,
                  draws=None if self.greedy else sparsemixer.draws(ctx, shape))
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
