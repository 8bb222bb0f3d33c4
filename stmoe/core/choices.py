"""How a token chooses its experts, and which of its further choices the token keeps.

Letters: G groups, S tokens per group, E experts, k choices. Random numbers come in as
uniforms, so that a recorded draw can be replayed. None is evaluation, without chance.
"""

import typing

import jax
import jax.numpy as jnp

from stmoe import errors


def named(table: dict[str, typing.Any], name: str, field: str) -> typing.Any:
  """Returns `table[name]`; raises UserError naming the field and the nearest choices.

  >>> named(dict(all=1), 'all', 'second_policy')
  1
  """
  if name not in table:
    raise errors.UserError(f'{field} has no choice {name!r}{errors.nearest(name, table)}'
                           f' (there are: {", ".join(table)})')
  return table[name]


def draw(key: jax.Array | None, *shape: int) -> jax.Array | None:
  """Returns uniforms f32[shape] in [0,1) from `key`, or None (evaluation) when there is no key.

  >>> draw(None, 2, 3) is None
  True
  """
  return None if key is None else jax.random.uniform(key, shape)


def best(rest: jax.Array, uniform: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S], the largest entry of `rest` f32[G,S,E]; the lower index on ties.

  >>> import jax.numpy as jnp
  >>> best(jnp.array([[[0.2, 0.4, 0.4]]])).tolist()
  [[1]]
  """
  del uniform
  return jnp.argmax(rest, axis=-1)


def sample(rest: jax.Array, uniform: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S], an entry drawn in proportion to `rest` f32[G,S,E]; `best` without uniforms.

  By inversion of the distribution function: one uniform f32[G,S] for each draw. Negative
  entries are never drawn.

  >>> import jax.numpy as jnp
  >>> sample(jnp.array([[[0.5, -1.0, 0.5]]]), jnp.array([[0.7]])).tolist()
  [[2]]
  """
  if uniform is None:
    return best(rest)
  cdf = jnp.cumsum(jnp.maximum(rest, 0), axis=-1)                    # [G, S, E]
  drawn = jnp.sum(cdf <= uniform[..., None] * cdf[..., -1:], axis=-1)
  # Rounding may draw past the last positive entry, and all-zero rows draw nothing.
  valid = jnp.take_along_axis(rest, jnp.minimum(drawn, rest.shape[-1] - 1)[..., None], axis=-1)[..., 0] > 0
  return jnp.where(valid, drawn, best(rest))


# (rest f32[G,S,E], uniform f32[G,S] or None) -> i32[G,S], as `best` and `sample`.
Picks = typing.Callable[[jax.Array, jax.Array | None], jax.Array]


def choose(probs: jax.Array, k: int, others: Picks = best, uniform: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S,k]: the largest entry, then k-1 further entries that `others` picks from the rest.

  Args:
    probs:   f32[G,S,E], not negative.
    others:  `best` (top-k) or `sample`.
    uniform: f32[G,S,k-1] in [0,1), or None.

  >>> import jax.numpy as jnp
  >>> choose(jnp.array([[[0.1, 0.6, 0.3]]]), 2).tolist()
  [[[1, 2]]]
  """
  rest, choice = jax.lax.stop_gradient(probs), []
  for level in range(k):
    u = None if uniform is None or level == 0 else uniform[..., level - 1]
    choice.append(others(rest, u) if level else best(rest))
    # -1, not 0: where the softmax has saturated, the other entries are 0 as well.
    rest = jnp.where(jax.nn.one_hot(choice[-1], probs.shape[-1], dtype=bool), -1, rest)
  return jnp.stack(choice, axis=-1)                                  # [G, S, k]


def values(probs: jax.Array, choice: jax.Array) -> jax.Array:
  """Returns f32[G,S,k], `probs` f32[G,S,E] at `choice` i32[G,S,k], with a gather-free gradient.

  >>> import jax.numpy as jnp
  >>> values(jnp.array([[[0.25, 0.75]]]), jnp.array([[[1, 0]]])).tolist()
  [[[0.75, 0.25]]]
  """
  chosen = jax.nn.one_hot(choice, probs.shape[-1], dtype=bool)       # [G, S, k, E]
  return jnp.sum(jnp.where(chosen, probs[..., None, :], 0), axis=-1)


def normalize(gates: jax.Array) -> jax.Array:
  """Returns gates f32[...,k] over their sum (+1e-9); a single gate stays as it is.

  A normalised single gate would be constantly 1, and the router would get no gradient.

  >>> import jax.numpy as jnp
  >>> normalize(jnp.array([0.3, 0.1])).tolist(), normalize(jnp.array([0.5])).tolist()
  ([0.75, 0.25], [0.5])
  """
  return gates if gates.shape[-1] == 1 else gates / (gates.sum(axis=-1, keepdims=True) + 1e-9)


def keep_all(gates: jax.Array, uniform: jax.Array | None, threshold: float) -> jax.Array:
  """Returns bool[G,S,k-1]: every further choice is kept."""
  return jnp.ones(gates.shape, bool)


def keep_none(gates: jax.Array, uniform: jax.Array | None, threshold: float) -> jax.Array:
  """Returns bool[G,S,k-1]: no further choice is kept."""
  return jnp.zeros(gates.shape, bool)


def keep_random(gates: jax.Array, uniform: jax.Array | None, threshold: float) -> jax.Array:
  """Returns bool[G,S,k-1]: kept with probability min(1, gate / threshold).

  Without uniforms each choice takes its likelier outcome: kept iff gate / threshold > 1/2.

  >>> import jax.numpy as jnp
  >>> keep_random(jnp.array([0.1, 0.1]), jnp.array([0.4, 0.6]), 0.2).tolist()
  [True, False]
  """
  return (0.5 if uniform is None else uniform) < gates / max(threshold, 1e-9)


def keep_above(gates: jax.Array, uniform: jax.Array | None, threshold: float) -> jax.Array:
  """Returns bool[G,S,k-1]: kept iff its gate is above the threshold."""
  return gates > threshold


# Policies for the second and further choices (GShard, arXiv:2006.16668, algorithm 1; Mesh-TensorFlow).
KEEP = {'all': keep_all, 'none': keep_none, 'random': keep_random, 'threshold': keep_above}


def keep(policy: str, gates: jax.Array, uniform: jax.Array | None, threshold: float) -> jax.Array:
  """Returns bool[G,S,k]: True for the first choice; of further choices the named policy of KEEP decides.

  Args:
    gates:     f32[G,S,k] as they count for the policy.
    uniform:   f32[G,S,k-1] or None.

  >>> import jax.numpy as jnp
  >>> keep('threshold', jnp.array([[[0.1, 0.4]]]), None, 0.3).tolist()
  [[[True, True]]]
  """
  gates = jax.lax.stop_gradient(gates)
  others = named(KEEP, policy, 'second_policy')(gates[..., 1:], uniform, threshold)
  return jnp.concatenate([jnp.ones((*gates.shape[:-1], 1), bool), others], axis=-1)


def sqrt_softplus(logits: jax.Array) -> jax.Array:
  """Returns f32[...], the square root of ln(1 + e^z): positive, and unbounded above (DeepSeek-V4).

  >>> round(float(sqrt_softplus(jnp.zeros(()))) ** 2, 4)
  0.6931
  """
  return jnp.sqrt(jnp.maximum(jax.nn.softplus(logits), 1e-30))       # the root of 0 has no gradient


# Functions of logits f32[G,S,E] that score experts; all are positive, and softmax adds up to 1.
SCORES = dict(softmax=jax.nn.softmax, sigmoid=jax.nn.sigmoid, sqrtsoftplus=sqrt_softplus)


def check_k(router: str, k: int, num_experts: int, num_virtual: int = 0) -> None:
  """Raises UserError unless a token can choose k of the experts, virtual experts included."""
  most = num_experts + num_virtual
  if not 1 <= k <= most:
    raise errors.UserError(f'router {router}: k={k} with num_experts={num_experts}; k is at least 1 and at '
                           f'most {most}')


def check_groups(router: str, num_experts: int, k: int, num_groups: int, kept_groups: int,
                 least: int = 1) -> None:
  """Raises UserError unless k choices fit into `kept_groups` of `num_groups` equal groups of experts.

  Args:
    router: the router's name, for the message.
    least:  experts that a group must have (2 where its two best are added up).
  """
  say = lambda text: errors.UserError(f'router {router}: {text}')
  check_k(router, k, num_experts)
  legal = [n for n in errors.divisors(num_experts) if n == 1 or num_experts // n >= least]
  if num_groups not in legal:
    raise say(f'num_groups={num_groups} does not divide num_experts={num_experts} into groups of at least '
              f'{least}; nearest: {errors.around(num_groups, legal)}')
  needed = -(-k * num_groups // num_experts)
  if not needed <= kept_groups <= num_groups:
    raise say(f'kept_groups={kept_groups} of num_groups={num_groups}: groups of {num_experts // num_groups} '
              f'experts, so k={k} needs at least {needed} and there are {num_groups}')


def reach(router: typing.Any) -> int:
  """Returns how many experts a token can choose among whose router keeps some of equal groups of them."""
  return router.num_experts * router.kept_groups // router.num_groups


def within_groups(scores: jax.Array, num_groups: int, kept_groups: int, best: int = 1) -> jax.Array:
  """Returns f32[G,S,E]: `scores` with -inf at the experts of all groups but the `kept_groups` best.

  Groups are contiguous runs of E / num_groups experts (a device or a node each); a group's score
  is the sum of its `best` largest scores (DeepSeek-V2, arXiv:2405.04434, section 2.2.2: 1;
  DeepSeek-V3, arXiv:2412.19437, section 2.1.2: 2). -inf, not 0: valid scores may be negative.

  Args:
    scores: f32[G,S,E].

  >>> import jax.numpy as jnp
  >>> within_groups(jnp.array([[[0.5, 0.0, 0.25, 0.375]]]), 2, 1).tolist()
  [[[0.5, 0.0, -inf, -inf]]]
  >>> within_groups(jnp.array([[[0.5, 0.0, 0.25, 0.375]]]), 2, 1, best=2).tolist()
  [[[-inf, -inf, 0.25, 0.375]]]
  """
  if kept_groups == num_groups:
    return scores
  grouped = scores.reshape(*scores.shape[:-1], num_groups, -1)       # [G, S, groups, E/groups]
  score = jax.lax.top_k(grouped, best)[0].sum(axis=-1)               # [G, S, groups]
  kept = jax.nn.one_hot(top(score, kept_groups), num_groups, dtype=bool).any(axis=-2)
  return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(scores.shape)


def top(scores: jax.Array, k: int) -> jax.Array:
  """Returns i32[G,S,k], the k largest entries of `scores` f32[G,S,E] of any sign; the lower index on ties.

  >>> import jax.numpy as jnp
  >>> top(jnp.array([[[-1.0, -3.0, -2.0]]]), 2).tolist()
  [[[0, 2]]]
  """
  return jax.lax.top_k(jax.lax.stop_gradient(scores), k)[1]
