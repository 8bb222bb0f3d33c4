"""Expert choice: every expert takes its best tokens of the group (arXiv:2202.09368)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def capped(scores: jax.Array, k: int, b: int, entropy: float = 1e-3, sweeps: int = 100) -> jax.Array:
  """Returns A f32[G,E,S], the soft choice in which a token has at most b experts (section 3.3).

  A maximises <scores, A> + entropy * H(A) with rows summing to k, columns to at most b, and
  entries in [0, 1]. Alternating KL projections with Dykstra's corrections find A, in the log
  domain because exp(1/entropy) overflows. They converge slowly for small `entropy`.

  Args:
    scores: f32[G,S,E] token-to-expert probabilities.
    k:      tokens per expert; b: experts per token, k * E <= b * S.
  """
  log_a = jnp.swapaxes(scores, 1, 2) / entropy                       # [G, E, S]

  def sweep(state, _):
    log_a, q_columns, q_box = state
    log_a = log_a + math.log(k) - jax.nn.logsumexp(log_a, axis=2, keepdims=True)   # rows, an equality
    y = log_a + q_columns
    log_a = y + jnp.minimum(0, math.log(b) - jax.nn.logsumexp(y, axis=1, keepdims=True))
    q_columns = y - log_a
    y = log_a + q_box
    log_a = jnp.minimum(y, 0)
    return (log_a, q_columns, y - log_a), None

  start = (log_a, jnp.zeros_like(log_a), jnp.zeros_like(log_a))
  return jnp.exp(jax.lax.scan(sweep, start, length=sweeps)[0][0])


def normalize_by_token(a: assignment.Assignment) -> assignment.Assignment:
  """Returns Assignment `a` with the live weights of each token [G,S] over their sum; dead weights become 0.

  Tokens without a live edge stay at 0 (Sparse Upcycling's vision models, arXiv:2212.05055). A token
  that one expert took has weight 1 and gives the router no gradient.
  """
  weight = jnp.where(assignment.live(a), a.weight, 0)                # [G, N]
  group = jnp.arange(weight.shape[0])[:, None]
  total = jnp.zeros((weight.shape[0], a.num_tokens)).at[group, a.token].add(weight)   # [G, S]
  total = jnp.where(total > 0, total, 1)
  return a.replace(weight=weight / jnp.take_along_axis(total, a.token, axis=1))


def expert_choice(logits: jax.Array, mask: jax.Array, capacity: int, *, tokens: jax.Array | None = None,
                  max_experts_per_token: int | None = None, entropy: float = 1e-3, sweeps: int = 100,
                  normalize: bool = False) -> contract.Decision:
  """Returns (Assignment, Aux): each expert's C tokens of largest probability (section 3.2).

  Probabilities are a softmax over experts and weigh the outputs as they are. A token may
  be taken by many experts or by none. Padding may be taken only where real tokens run out,
  and then leaves its slot empty.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; capacity: C <= S; tokens: see `losses.token_mean`.
    max_experts_per_token: b, or None. With b, experts rank tokens by `capped` instead of by
      probability; the paper's cap is soft, so b may still be exceeded.
    entropy, sweeps: lambda and iterations of `capped`.
    normalize: `normalize_by_token` the weights.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  groups, _, experts = probs.shape
  real = mask.astype(bool)[..., None]                                # [G, S, 1]
  # Padding ranks below every real token, by so much that no sweep of `capped` lifts it.
  ranking = jax.lax.stop_gradient(jnp.where(real, probs, -1e3))
  if max_experts_per_token is not None:
    soft = capped(ranking, capacity, max_experts_per_token, entropy, sweeps)       # [G, E, S]
    ranking = jnp.where(real, jnp.swapaxes(soft, 1, 2), -1)
  edges = assignment.from_experts_choice(ranking, capacity)          # [G, E*C]
  weight = probs[jnp.arange(groups)[:, None], edges.token, edges.expert]
  edges = assignment.kill_padding(edges.replace(weight=weight), mask)
  a = assignment.cap(edges, capacity)
  if normalize:
    a = normalize_by_token(a)
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  numbers['experts_per_token_max'] = metrics.experts_per_token(a).max().astype(jnp.float32)
  # Loads are equal by construction. The loss of 0 counts where losses are averaged over layers (flaxformer).
  return a, contract.Aux(losses=dict(balance=jnp.float32(0), z=losses.z(logits, mask, tokens)),
                         load=metrics.load(edges), metrics=numbers)


class ExpertChoice(nnx.Module):
  """Experts choose tokens (arXiv:2202.09368). Whether a token is chosen depends on later tokens.

  Args:
    capacity_factor: (train, eval) c: average experts per token (paper: 2, flaxformer's gin: 1);
      None = every expert takes every token.
    min_capacity:    least slots of an expert, never more than the tokens of the group.
    max_experts_per_token: b of the capped variant (paper: 2 or 3), or None.
    entropy:         lambda of the capped variant.
    sweeps:          iterations of the capped variant.
    normalize:       weights of a token over their sum (arXiv:2212.05055, vision), or probabilities.
    allow_causal:    accept a stack in which a token must not depend on later tokens.
  Losses: z; balance is 0, none is needed.
  """

  undecodable = "experts choose among the tokens of a group, later ones too; nearest: router name='st_moe'"

  def __init__(self, d_model: int, *, num_experts: ranges.Count, capacity_factor: ranges.Factors = (2.0, 2.0),
               min_capacity: ranges.Natural = 4, max_experts_per_token: ranges.Count | None = None,
               entropy: ranges.Positive = 1e-3, sweeps: ranges.Count = 100, normalize: ranges.Flag = False,
               allow_causal: ranges.Flag = False, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.max_experts_per_token = max_experts_per_token
    self.entropy = entropy
    self.sweeps = sweeps
    self.normalize = normalize
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack, or for an impossible cap."""
    if ctx.causal and not self.allow_causal:
      raise UserError('router expert_choice lets later tokens decide in a causal stack; nearest: router '
                      "name='st_moe' (or allow_causal=True)")
    logits = gate.logits(x, self.w[...])
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    cap = self.max_experts_per_token
    if cap is not None and capacity * self.num_experts > cap * x.shape[1]:
      raise UserError(f'router expert_choice: max_experts_per_token={cap} of {x.shape[1]} tokens cannot fill '
                      f'{self.num_experts} experts of {capacity} slots; at least '
                      f'{math.ceil(capacity * self.num_experts / x.shape[1])} is needed')
    return contract.Routed(*expert_choice(
        logits, ctx.mask, capacity, tokens=ctx.tokens, max_experts_per_token=cap, entropy=self.entropy,
        sweeps=self.sweeps, normalize=self.normalize), carry)
