"""What routing looks like, in numbers: from a load, from edges, from an Assignment.

No gradient flows out of a metric. `load` is f32[...,E], so that a stack's [L,E] works.
"""

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core.units import counting


def load(edges: assignment.Edges) -> jax.Array:
  """Returns f32[E]: how many edges want each expert, before any drop; f32[E+Z] with virtual experts.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> load(assignment.from_top_k(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]]), 1)).tolist()
  [2.0, 1.0]
  """
  return counting.counts(edges.expert, edges.dead).sum(axis=0, dtype=jnp.float32)


def load_entropy(load: jax.Array) -> jax.Array:
  """Returns f32[...]: the entropy of the load over ln E; 1 = balanced, 0 = one expert (or no load).

  >>> import jax.numpy as jnp
  >>> load_entropy(jnp.array([[2.0, 2.0], [4.0, 0.0], [0.0, 0.0]])).tolist()
  [1.0, 0.0, 0.0]
  """
  share = load / jnp.maximum(load.sum(axis=-1, keepdims=True), 1)
  nats = jnp.sum(share * jnp.log(1 / jnp.where(share > 0, share, 1)), axis=-1)
  return nats / jnp.log(max(load.shape[-1], 2))


def max_load_ratio(load: jax.Array) -> jax.Array:
  """Returns f32[...]: the largest load over the mean load; 1 = balanced, E = one expert takes all.

  >>> import jax.numpy as jnp
  >>> max_load_ratio(jnp.array([[2.0, 2.0], [4.0, 0.0]])).tolist()
  [1.0, 2.0]
  """
  mean = load.mean(axis=-1)
  return jnp.where(mean > 0, load.max(axis=-1) / jnp.where(mean > 0, mean, 1), 0)


def max_vio(load: jax.Array) -> jax.Array:
  """Returns f32[...], MaxVio: largest load over the mean load, minus 1 (arXiv:2408.15664); 0 = balanced.

  >>> import jax.numpy as jnp
  >>> max_vio(jnp.array([[2.0, 2.0], [4.0, 0.0], [0.0, 0.0]])).tolist()
  [0.0, 1.0, 0.0]
  """
  return jnp.maximum(max_load_ratio(load) - 1, 0)                    # without load the ratio is 0


def dead_experts(load: jax.Array) -> jax.Array:
  """Returns f32[...]: how many experts nobody wanted.

  >>> import jax.numpy as jnp
  >>> float(dead_experts(jnp.array([3.0, 0.0, 1.0])))
  1.0
  """
  return jnp.sum(load == 0, axis=-1, dtype=jnp.float32)


def _share(part, whole):
  return jnp.sum(part, dtype=jnp.float32) / jnp.maximum(jnp.sum(whole, dtype=jnp.float32), 1)


def drop_frac(edges: assignment.Edges, a: assignment.Assignment) -> jax.Array:
  """Returns f32[]: the share of wanted edges that found no place; padding wants no edges.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_top_k(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]]), 1)
  >>> round(float(drop_frac(edges, assignment.cap(edges, 1))), 4)
  0.3333
  """
  wanted = assignment.reaching(edges)
  return _share(wanted & ~assignment.reaching(a), wanted)


def virtual_frac(edges: assignment.Edges) -> jax.Array:
  """Returns f32[]: the share of wanted edges that go to virtual experts, whose tokens compute the less.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_choices(jnp.array([[[0], [1], [2]]]), jnp.ones((1, 3, 1)), 1, num_virtual=1)
  >>> float(virtual_frac(edges))
  0.5
  """
  wanted = assignment.reaching(edges)
  return _share(wanted & ~assignment.live(edges), wanted)


def over_capacity(edges: assignment.Edges, a: assignment.Assignment) -> list[contract.Statistic]:
  """Returns `drop_frac` of each choice level (GShard's over_capacity_1 and _2).

  Args:
    edges, a: of token choice, so with `choices` = k.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_top_k(jnp.array([[[0.9, 0.1], [0.8, 0.2]]]), 2)
  >>> [float(share.value) for share in over_capacity(edges, assignment.cap(edges, 1))]
  [0.5, 0.5]
  """
  levels = lambda flags: flags.reshape(flags.shape[0], edges.choices, -1)          # [G, k, S]
  wanted, kept = levels(assignment.reaching(edges)), levels(assignment.reaching(a))
  number = lambda flags: jnp.sum(flags, axis=(0, 2), dtype=jnp.float32)            # [k]
  return [contract.mean(lost, count) for lost, count in zip(number(wanted & ~kept), number(wanted))]


def experts_per_token(a: assignment.Assignment) -> jax.Array:
  """Returns i32[G,S]: how many experts each token reaches, virtual experts included.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_experts_choice(jnp.array([[[0.9, 0.6], [0.1, 0.4]]]), 1)
  >>> experts_per_token(assignment.cap(edges, 1)).tolist()
  [[2, 0]]
  """
  reaching = assignment.reaching(a).astype(jnp.int32)
  groups = jnp.arange(reaching.shape[0])[:, None]
  return jnp.zeros((reaching.shape[0], a.num_tokens), jnp.int32).at[groups, a.token].add(reaching)


def left_behind(a: assignment.Assignment, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[]: the share of real tokens that reach no expert, not even a virtual one.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_experts_choice(jnp.array([[[0.9, 0.6], [0.1, 0.4]]]), 1)
  >>> float(left_behind(assignment.cap(edges, 1), jnp.ones((1, 2), bool)))
  0.5
  """
  return losses.token_mean((experts_per_token(a) == 0).astype(jnp.float32), mask, tokens)


def active_experts(a: assignment.Assignment, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[]: how many real experts compute a real token, on average.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_choices(jnp.array([[[0, 1], [1, 2]]]), jnp.ones((1, 2, 2)), 2, num_virtual=1)
  >>> float(active_experts(assignment.cap(edges, 2), jnp.ones((1, 2), bool)))
  1.5
  """
  tokens = jnp.maximum(jnp.sum(mask), 1) if tokens is None else tokens
  return jnp.sum(assignment.live(a), dtype=jnp.float32) / tokens     # padding has no live edges


def slot_usage(a: assignment.Assignment) -> jax.Array:
  """Returns f32[]: the share of the G*E*C slots that hold a token.

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_top_k(jnp.array([[[0.9, 0.1], [0.8, 0.2]]]), 1)
  >>> float(slot_usage(assignment.cap(edges, 2)))
  0.5
  """
  slots = float(a.token.shape[0] * a.num_experts * a.capacity)       # over 2^31 on large meshes
  return jnp.sum(assignment.live(a), dtype=jnp.float32) / slots


def confidence(a: assignment.Assignment) -> jax.Array:
  """Returns f32[]: the mean combine weight of the edges that are executed (flaxformer's).

  >>> from stmoe.core import assignment
  >>> import jax.numpy as jnp
  >>> edges = assignment.from_top_k(jnp.array([[[0.75, 0.25], [0.5, 0.5]]]), 1)
  >>> float(confidence(assignment.cap(edges, 2)))
  0.625
  """
  reaching = assignment.reaching(a)
  return _share(jnp.where(reaching, a.weight, 0), reaching)


def entropy(probs: jax.Array, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[]: the mean entropy in nats of the real tokens' router probabilities; ln E = undecided.

  >>> import jax.numpy as jnp
  >>> round(float(entropy(jnp.full((1, 2, 2), 0.5), jnp.ones((1, 2), bool))), 4)
  0.6931
  """
  entropies = -jnp.sum(probs * jnp.log(jnp.where(probs > 0, probs, 1)), axis=-1)   # [G, S]
  return losses.token_mean(entropies, mask, tokens)


def logit_max(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[]: the largest absolute router logit of a real token; growth foretells divergence.

  >>> import jax.numpy as jnp
  >>> float(logit_max(jnp.array([[[1.0, -3.0], [9.0, 0.0]]]), jnp.array([[True, False]])))
  3.0
  """
  return jnp.max(jnp.where(mask[..., None], jnp.abs(logits), 0))


@jax.named_scope('metrics')
def routing(logits: jax.Array, probs: jax.Array, edges: assignment.Edges, a: assignment.Assignment,
            mask: jax.Array, tokens: jax.Array | None = None) -> dict[str, jax.Array]:
  """Returns the dict of metrics that every router reports, without gradient.

  Args:
    logits, probs: f32[G,S,E].
    edges:  Edges wanted, padding killed; `a` the Assignment made of them.
    mask:   bool[G,S] real tokens; tokens: see `losses.token_mean`.
  """
  logits, probs, a = jax.lax.stop_gradient((logits, probs, a))
  virtual = dict(virtual_frac=virtual_frac(edges)) if edges.num_virtual else {}
  return dict(virtual, active_experts=active_experts(a, mask, tokens),
              drop_frac=drop_frac(edges, a), left_behind=left_behind(a, mask, tokens),
              slot_usage=slot_usage(a), router_conf=confidence(a),
              router_entropy=entropy(probs, mask, tokens), router_logit_max=logit_max(logits, mask))


def merge(aux: contract.Aux) -> contract.Aux:
  """Returns the Aux of a whole batch from an Aux of arrays [M,...], of its M microbatches.

  Loads add up, and statistics as each of them says. A metric with a statistic of its name is that statistic's
  value. Losses and metrics are means over microbatches: sums over tokens, divided by `Context.tokens`. Names
  tell other metrics: ..._max is a maximum, ..._frac is a share of the load, ..._conf is a mean over the load
  that found a place.
  """
  wanted = jnp.sum(aux.load, -1)                                     # [M]
  executed = wanted * (1 - aux.metrics.get('drop_frac', 0))
  over = lambda weights, x: jnp.sum(x * weights) / jnp.where(weights.sum() > 0, weights.sum(), 1)

  def reduce(name, x):
    if name in aux.statistics:                                       # [M], or [M,H] of H routers side by side
      return jax.tree.map(jnp.ravel, aux.statistics[name]).together().value
    if name.endswith('_max'):
      return jnp.max(x, 0)
    if name.endswith('_frac'):
      return over(wanted, x)
    return over(executed, x) if name.endswith('_conf') else jnp.mean(x, 0)

  return contract.Aux(losses={n: jnp.mean(x, 0) for n, x in aux.losses.items()}, load=jnp.sum(aux.load, 0),
                      metrics={n: reduce(n, x) for n, x in aux.metrics.items()},
                      statistics={n: x.together() for n, x in aux.statistics.items()})
