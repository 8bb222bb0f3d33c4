"""What Hash layers look up in a table, or compute instead (arXiv:2106.04426).

It is a function of the ids and positions of a batch, on the device. Letters: V ids, K buckets.
"""

import jax
import jax.numpy as jnp

START = 0              # the reserved id before the first token of a document: padding, the decoder's start
PRIME = 1_000_003      # p of `bigram`; the paper prints none


def before(ids: jax.Array, positions: jax.Array) -> jax.Array:
  """Returns i32[G,S]: the id one place earlier in the same document, START at its first token.

  Groups are taken as the rows of a single list, so groups may cut documents anywhere.

  Args:
    ids, positions: i32[G,S] token ids, and their positions in their documents.

  >>> before(jnp.array([[5, 6], [7, 8]]), jnp.array([[0, 1], [2, 0]])).tolist()
  [[0, 5], [6, 0]]
  """
  earlier = jnp.roll(ids.reshape(-1), 1).reshape(ids.shape)
  return jnp.where(positions > 0, earlier, START)


def after(ids: jax.Array, positions: jax.Array) -> jax.Array:
  """Returns i32[G,S]: the id one place later in the same document, START at its last token.

  Args:
    ids, positions: i32[G,S] token ids, and their positions in their documents.

  >>> after(jnp.array([[5, 6], [7, 8]]), jnp.array([[0, 1], [2, 0]])).tolist()
  [[6, 7], [0, 0]]
  """
  later = lambda a: jnp.roll(a.reshape(-1), -1).reshape(a.shape)
  return jnp.where(later(positions) > 0, later(ids), START)          # the last wraps to a first token


def bigram(ids: jax.Array, earlier: jax.Array, num_experts: int) -> jax.Array:
  """Returns i32[G,S]: ((x_t mod K) + (p x_{t-1}) mod K) mod K, with the prime p = PRIME.

  As the authors describe it (facebookresearch/ParlAI issue 3735). Differs: the sum is taken modulo K
  once more, to stay in range.

  Args:
    ids, earlier: i32[G,S] ids x_t and x_{t-1}.

  >>> bigram(jnp.array([[5, 6]]), jnp.array([[0, 5]]), 4).tolist()   # p mod 4 = 3: 1 + 0, 2 + 15 mod 4
  [[1, 1]]
  """
  # Reduced before the product, which would not fit 32 bits.
  scaled = (PRIME % num_experts) * (earlier % num_experts) % num_experts
  return (ids % num_experts + scaled) % num_experts


def position(positions: jax.Array, num_experts: int) -> jax.Array:
  """Returns i32[G,S]: the position within the document modulo K.

  >>> position(jnp.array([[0, 1, 2, 0]]), 2).tolist()
  [[0, 1, 0, 0]]
  """
  return positions % num_experts


def fresh(key: jax.Array | None, table: jax.Array, ids: jax.Array, num_experts: int) -> jax.Array:
  """Returns i32[G,S]: a new uniform draw for every occurrence, or table[ids] without a key (evaluation).

  This is a control that no paper has: experts chosen by chance, like one pass of THOR per token.

  Args:
    table: i32[V]; ids: i32[G,S].

  >>> fresh(None, jnp.array([2, 1]), jnp.array([[1, 0]]), 3).tolist()
  [[1, 2]]
  """
  if key is None:
    return table[ids]
  return jax.random.randint(key, ids.shape, 0, num_experts)
