"""Products of tokens with a matrix."""

from flax import nnx
import jax

from stmoe import axes
from stmoe.core.units import adapted

Array = jax.Array | nnx.Variable


def apply(x: jax.Array, w: Array, b: Array | None = None) -> jax.Array:
  """Returns x w, plus b where there is one: [...,F] in the dtype of x, for x [...,D], w [D,F], b [F].

  The tokens are rows of one matrix. With more axes than two, XLA on CPUs transposes the whole cotangent, to
  contract both axes at once into w's gradient; that halves the speed of the product. Where devices share the
  length, merging the axes would gather it, so the axes stay.
  """
  rows = x if axes.num_shards('length') > 1 else x.reshape(-1, x.shape[-1])
  y = adapted.times(rows, w[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
  return y if b is None else y + b[...].astype(x.dtype)
