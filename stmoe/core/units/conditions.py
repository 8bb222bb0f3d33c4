"""Networks with a context: rows [R,n+C] hold n numbers of a state, and behind them the context of the row.

Experts that share one function up to a few numbers read these numbers as the context: environments of a
system, domains, users. The context of an expert may be its own part of the row's context.
"""

import itertools
import math
import typing

import jax
import jax.numpy as jnp

from stmoe.errors import UserError

Init = typing.Callable[..., jax.Array]   # (key, shape, dtype) -> array


def width(bank: str, context: int, split: bool, num_experts: int) -> int:
  """Returns c, the width of what an expert reads of a context of C numbers, as in rows [R,n+C].

  Args:
    bank:    the bank's name, for the message.
    context: C.
    split:   whether each of the experts reads its own of C / c equal parts.

  >>> width('geps', 6, True, 3), width('geps', 6, False, 3)
  (2, 6)
  """
  if not split:
    return context
  if context % num_experts:
    raise UserError(f'experts {bank}: a context of {context} numbers is not split into {num_experts} equal '
                    f'parts; nearest: {max(context // num_experts, 1) * num_experts}')
  return context // num_experts


def parted(rows: jax.Array, context: int, part: int, number: jax.Array | None = None,
           shift: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Returns (states [R,n], contexts [R,c]) of rows [R,n+C] of one expert.

  Args:
    context, part: C and c.
    number: [1] of the expert, whose part of the context is read; None = the context is whole.
    shift:  [1], added to every number of the context, or None.

  >>> rows = jnp.array([[9., 1., 2., 3., 4.]])
  >>> [x.tolist() for x in parted(rows, 4, 2, jnp.float32(1), jnp.array([0.5]))]
  [[[9.0]], [[3.5, 4.5]]]
  """
  state, x = jnp.split(rows, [rows.shape[-1] - context], axis=-1)
  if number is not None:
    parts = x.reshape(*x.shape[:-1], context // part, part)          # [R, C/c, c]
    mine = jnp.arange(context // part) == number                     # other parts get no gradient
    x = jnp.sum(jnp.where(mine[:, None], parts, 0), axis=-2)         # [R, c]
  return state, x if shift is None else x + shift


def swish(x: jax.Array, beta: jax.Array) -> jax.Array:
  """Returns x sigmoid(beta x) of any shape; beta is 1 in `jax.nn.silu`.

  >>> float(swish(jnp.float32(2), jnp.float32(0)))
  1.0
  """
  return x * jax.nn.sigmoid(beta * x)


def beta(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  """Returns first values of beta, any shape, drawn from U(0.01, 1)."""
  return jax.random.uniform(key, shape, dtype, 0.01, 1.0)


def within(fan: int) -> Init:
  """Returns the initialiser U(-1/sqrt(fan), 1/sqrt(fan)) of arrays of any shape."""
  bound = max(fan, 1) ** -0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def alike(init: Init, same: bool) -> Init:
  """Returns the initialiser of arrays [E,...]: that of one expert by `init`, repeated, if they are `same`."""
  if not same:
    return init
  return lambda key, shape, dtype: jnp.broadcast_to(init(key, (1, *shape[1:]), dtype), shape)


def numbers(num_experts: int) -> jax.Array:
  """Returns f32[E,1], the numbers of experts that read their own parts of a context."""
  return jnp.arange(num_experts, dtype=jnp.float32)[:, None]


def cut(flat: jax.Array, shapes: typing.Sequence[tuple[int, ...]]) -> list[jax.Array]:
  """Returns the arrays [...,*shape] of `shapes`, in their order, of a flat vector [...,P].

  >>> [x.tolist() for x in cut(jnp.arange(5.), [(2, 2), (1,)])]
  [[[0.0, 1.0], [2.0, 3.0]], [4.0]]
  """
  ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
  parts = jnp.split(flat, ends[:-1], axis=-1)
  return [part.reshape(*flat.shape[:-1], *shape) for part, shape in zip(parts, shapes)]
