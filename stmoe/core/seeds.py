"""Keys from seeds of 64 bits. JAX keeps the low 32 bits alone, so 0 and 2^32 would be the same seed."""

import jax

WORD = 2**32


def key(seed: int) -> jax.Array:
  """Returns the PRNG key [] of a seed from 0 to 2^64 - 1; below 2^32 it is `jax.random.key(seed)`.

  >>> bool(key(7) == jax.random.key(7)), bool(key(7) == key(7 + 2**32))
  (True, False)
  """
  low = jax.random.key(seed % WORD)
  return low if seed < WORD else jax.random.fold_in(low, seed // WORD)


def fold(key: jax.Array, seed: int) -> jax.Array:
  """Returns `key` [] folded with a seed from 0 to 2^64 - 1; below 2^32 it is `jax.random.fold_in(key, seed)`.

  >>> one = key(0)
  >>> bool(fold(one, 7) == jax.random.fold_in(one, 7)), bool(fold(one, 7) == fold(one, 7 + 2**32))
  (True, False)
  """
  low = jax.random.fold_in(key, seed % WORD)
  return low if seed < WORD else jax.random.fold_in(low, seed // WORD)
