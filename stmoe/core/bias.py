"""Balance without interference: a selection bias that follows the load and is no loss. Letter: E experts."""

import jax
import jax.numpy as jnp


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
