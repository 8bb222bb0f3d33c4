"""MixER's gate: contexts are clustered, clusters get experts, a linear map is fitted (arXiv:2502.05335)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core.units import conditions
from stmoe.core import contract
from stmoe.core.units import kmeans
from stmoe.core import gate as gates
from stmoe.core import metrics

TIE = 1e-6                                           # probabilities nearer than this to the largest win, too


def mixer(logits: jax.Array, mask: jax.Array, tokens: jax.Array | None = None,
          choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its most probable expert, weight 1; of exact ties to all.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(probs, 1 if choose else probs.shape[-1])        # [G, S, k]
  best = jnp.max(probs, axis=-1, keepdims=True)
  wins = jnp.full(choice.shape, True) if choose else choices.values(probs, choice) > best - TIE
  choice = jnp.where(wins, choice, probs.shape[-1])                  # E: a dead edge
  edges = assignment.from_choices(choice, jnp.ones(choice.shape), probs.shape[-1])
  edges = assignment.expecting(assignment.kill_padding(edges, mask), mask.shape[1])
  a = assignment.cap(edges, mask.shape[1])
  return a, contract.Aux(losses={}, load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class Mixer(nnx.Module):
  """Top-1 by a linear gate on contexts that no gradient trains: `commit` fits the gate (section 3 of the
  note).

  Where a layer gives the error of every expert on each token (layers/mixer.py), the contexts of all
  environments are clustered by K-means. Each cluster takes the free expert of least median error, in order.
  The gate is the least-squares map from contexts to these experts. If K-means finds an empty cluster or does
  not converge, the gate stays, and the next update begins with new centroids.

  Args:
    num_environments: N; `given['environment']` i32[G,S] says which of them a token belongs to.
    bias:       the gate has a row for a constant 1.
    every:      the gate is renewed in every so many steps; 0 = never. Then it keeps its random beginning, as
      under the released `gradient_descent`: the unweighted winner gives the gate a gradient of exactly 0.
    noise:      standard deviation of what is added to contexts in the fit.
    iterations: most of K-means. The last one counts as not converged, as released.
    tolerance:  of centroids that do not move any more.
  Losses: none.
  State: gate f32[D+1,E], centroids f32[E,D], known, tried and accepted f32[], draws u32[].
  Differs: K-means and noise have keys of their own, where the released code has one key for both.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, num_environments: ranges.Count = 1,
               bias: ranges.Flag = True, every: ranges.Natural = 1, noise: ranges.NonNegative = 1e-4,
               iterations: ranges.Count = 20, tolerance: ranges.Positive = 1e-4, rngs):
    rows, zero = d_model + bias, jnp.zeros(())
    first = conditions.within(rows)(rngs.params(), (rows, num_experts), jnp.float32)
    self.gate = axes.state(first, 'unmodeled', 'unmodeled')
    self.centroids = axes.state(jnp.zeros((num_experts, d_model)), 'unmodeled', 'unmodeled')
    self.known, self.tried, self.accepted = axes.state(zero), axes.state(zero), axes.state(zero)
    self.draws = axes.state(jax.random.bits(rngs.params(), (), jnp.uint32))
    self.num_experts, self.num_environments = num_experts, num_environments
    self.k = num_experts
    self.bias, self.every, self.noise = bias, every, noise
    self.iterations, self.tolerance = iterations, tolerance
    self.products_per_row = rows * num_experts                       # centroids multiply nothing
    # All experts run on every token where the gate is renewed, without a backward: a third of a row's cost.
    self.more_rows = num_experts / every / 3 if every else 0.0

  def learns_from_errors(self, step: jax.Array) -> jax.Array:
    """Returns bool[], whether `commit` after step i32[] renews the gate."""
    return (step + 1) % self.every == 0 if self.every else jnp.bool_(False)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for contexts x [G,S,D]."""
    return gates.logits(kmeans.with_bias(x, self.bias), self.gate[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    return contract.Routed(*mixer(logits, ctx.mask, ctx.tokens, choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for contexts x [G,S,D]."""
    routed = self.decide(self.logits(x, ctx), ctx, carry)
    if not (ctx.train and self.every and 'errors' in ctx.given):
      return routed
    number = ctx.known('environment', 'router mixer')                # [G, S]
    member = jax.nn.one_hot(number, self.num_environments) * ctx.mask[..., None]     # [G, S, N]
    count = jnp.sum(member, axis=(0, 1))[:, None] * self.learns_from_errors(ctx.step)
    found = {}
    for name, values in dict(contexts=x, errors=ctx.given['errors']).items():
      values = jax.lax.stop_gradient(values.astype(jnp.float32))
      found[name] = contract.mean(jnp.einsum('gsn,gsd->nd', member, values, precision='highest'), count)
    return routed.replace(aux=routed.aux.replace(statistics=found))

  def commit(self, aux: contract.Aux) -> None:
    """Renews the gate from the statistics contexts f32[N,D] and errors f32[N,E] of one optimizer step."""
    self.draws[...] = self.draws[...] + 1
    if 'errors' not in aux.statistics:
      return
    contexts, errors = aux.statistics['contexts'], aux.statistics['errors']
    due = jnp.any(errors.count > 0)
    old = kmeans.Fit(self.gate[...], self.centroids[...], self.known[...])

    def renewed():
      keys = jax.random.split(jax.random.key(self.draws[...]))
      drawn = jax.random.uniform(keys[0], old.centroids.shape, minval=-1e-3, maxval=1e-3)
      start = jnp.where(old.ok > 0, old.centroids, drawn)
      noise = self.noise * jax.random.normal(keys[1], contexts.value.shape)
      return kmeans.renew(old.gate, contexts.value, errors.value, start, noise, there=errors.count[:, 0] > 0,
                          bias=self.bias, iterations=self.iterations, tolerance=self.tolerance)[0]
    new = jax.lax.cond(due, renewed, lambda: old)
    self.gate[...], self.centroids[...], self.known[...] = new
    self.tried[...] += due.astype(jnp.float32)
    self.accepted[...] += (due & (new.ok > 0)).astype(jnp.float32)
