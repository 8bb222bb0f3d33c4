"""Balance without interference: a selection bias that follows the load, or is set to a quantile; no loss.

Letters: G groups, S tokens per group, E experts, T real tokens of all groups, k choices.
"""

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import contract
from stmoe.core import metrics


def update(bias: jax.Array, load: jax.Array, rate: float | jax.Array, centred: bool = False,
           rule: str = 'sign') -> jax.Array:
  """Returns the selection bias f32[E] after one optimizer step (arXiv:2408.15664, algorithm 1).

  b_e + rate * e_e, with e_e the sign of (mean load - load of e), 0 for an expert at the mean;
  rule 'magnitude' takes the difference itself, as a share of the mean load.

  Args:
    bias:    f32[E].
    load:    f32[E] whole numbers, below 2**31 in all: assignments of the step's whole batch, before any drop.
    rate:    u; 0 freezes the bias.
    centred: the step gets zero mean over experts, so that biases do not drift together (torchtitan).
    rule:    a key of RULES.
  Differs: of which load the paper's magnitude variant is a fraction is not stated.

  >>> update(jnp.zeros(3), jnp.array([5.0, 3.0, 1.0]), 0.5).tolist()
  [-0.5, 0.0, 0.5]
  >>> update(jnp.zeros(4), jnp.array([8.0, 0.0, 0.0, 0.0]), 1.0, centred=True).tolist()
  [-1.5, 0.5, 0.5, 0.5]
  """
  step = rate * RULES[rule](load)
  return bias + (step - jnp.mean(step) if centred else step)


def decided(logits: jax.Array, scores: jax.Array, bias: jax.Array, choice: jax.Array, gates: jax.Array,
            mask: jax.Array, sequence: jax.Array | None, tokens: jax.Array | None) -> contract.Decision:
  """Returns (Assignment, Aux) of what scores plus a bias chose: all of it is sent, padding is not.

  Losses: balance, of sequences, of the scores over their sum (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).

  Args:
    logits, scores: f32[G,S,E], scores positive; bias: f32[E]; mask: bool[G,S].
    choice, gates:  i32[G,S,k], f32[G,S,k].
    sequence: i32[G,S] of `balance.sequences`; None = a whole group. tokens: see `losses.token_mean`.

  >>> logits, choice = jnp.zeros((1, 2, 2)), jnp.array([[[0], [1]]])
  >>> a, aux = decided(logits, jnp.exp(logits), jnp.zeros(2), choice, jnp.ones((1, 2, 1)),
  ...                  jnp.array([[True, False]]), None, None)
  >>> a.expert.tolist(), aux.load.tolist(), float(aux.losses['balance'])
  ([[0, 2]], [1.0, 0.0], 1.0)
  """
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, scores.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  probs = scores / scores.sum(axis=-1, keepdims=True)
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  return a, contract.Aux(
      losses=dict(balance=balance.expert_loss(balance.shares(probs, choice, mask, sequence), tokens)),
      load=metrics.load(edges),
      metrics=dict(numbers, bias_abs_max=jnp.abs(bias).max()))


def sign(load: jax.Array) -> jax.Array:
  """Returns f32[E], the sign of (mean load - load) of loads f32[E]; exact, also where the mean is no integer.

  >>> sign(jnp.array([2.0, 2.0, 1.0])).tolist()
  [-1.0, -1.0, 1.0]
  """
  count = jnp.round(load).astype(jnp.int32)                          # float32 sums stop being exact at 2**24
  mean, rest = jnp.divmod(count.sum(), count.size)
  return jnp.where(count == mean, jnp.sign(rest), jnp.sign(mean - count)).astype(jnp.float32)


def magnitude(load: jax.Array) -> jax.Array:
  """Returns f32[E], (mean load - load) / mean load of loads f32[E]; 0 without load.

  >>> magnitude(jnp.array([3.0, 1.0])).tolist()
  [-0.5, 0.5]
  """
  mean = load.mean()
  return jnp.where(mean > 0, (mean - load) / jnp.where(mean > 0, mean, 1), 0)


RULES = {'sign': sign, 'magnitude': magnitude}


def quantile(required: jax.Array, mask: jax.Array, k: int) -> jax.Array:
  """Returns f32[E], the (T k / E + 1)-th largest `required` f32[G,S,E] over the T real tokens of all groups.

  As a bias it is exceeded T k / E times, a fraction rounded down. -inf without tokens.

  >>> quantile(jnp.array([[[3.0, 0.0], [1.0, 2.0]]]), jnp.ones((1, 2), bool), 1).tolist()
  [1.0, 0.0]
  """
  experts = required.shape[-1]
  ordered = jnp.sort(jnp.where(mask[..., None], -required, jnp.inf).reshape(-1, experts), axis=0)
  count = mask.sum()
  return -ordered[jnp.minimum(count * k // experts, count - 1)]


def histogram(required: jax.Array, mask: jax.Array, bias: jax.Array, bins: int) -> jax.Array:
  """Returns f32[E,bins]: how many real tokens require so much, in equal parts of the range of `span`.

  What lies outside is in the first or last part.

  Args:
    required: f32[G,S,E]; mask: bool[G,S]; bias: f32[E].

  >>> histogram(jnp.array([[[0.5, -0.5]]]), jnp.ones((1, 1), bool), jnp.zeros(2), 2).tolist()
  [[0.0, 1.0], [1.0, 0.0]]
  """
  low, width = span(bias, bins)
  part = jnp.clip(jnp.floor((required - low) / width), 0, bins - 1).astype(jnp.int32)
  expert = jnp.arange(required.shape[-1])
  count = jnp.broadcast_to(mask[..., None], part.shape).astype(jnp.float32)
  return jnp.zeros((expert.size, bins)).at[expert, part].add(count)


def span(bias: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
  """Returns (f32[] lower end, f32[] width of a part) of min(bias) - 1 to max(bias) + 1 in `bins` parts.

  >>> [float(number) for number in span(jnp.array([0.0, 1.0]), 6)]
  [-1.0, 0.5]
  """
  return bias.min() - 1, (bias.max() - bias.min() + 2) / bins


def of_histogram(counts: jax.Array, bias: jax.Array, k: int) -> jax.Array:
  """Returns f32[E], what T k / E tokens exceed, interpolated in the counts f32[E,bins] of `histogram`.

  >>> of_histogram(jnp.array([[0.0, 4.0], [2.0, 2.0]]), jnp.zeros(2), 1).tolist()
  [0.5, 0.0]
  """
  experts, bins = counts.shape
  low, width = span(bias, bins)
  wanted = counts.sum(axis=1, keepdims=True) * k / experts           # [E, 1]
  above = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]               # in this part and in those over it
  at = jnp.maximum(jnp.sum(above > wanted, axis=1, keepdims=True) - 1, 0)          # the part that it lies in
  own, under = (jnp.take_along_axis(a, at, axis=1) for a in (counts, above))
  share = (wanted - (under - own)) / jnp.maximum(own, 1)
  return (low + width * (at + 1 - share))[:, 0]
