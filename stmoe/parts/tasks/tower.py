"""A small network on the last axis of an array."""

from flax import nnx
import jax

from stmoe import axes
from stmoe.parts import linear


class Tower(nnx.Module):
  """Layers with a bias, from width to width of `widths`, and ReLU between them.

  rows: how many rows pass for a row of a batch, where not its tokens (`rows_per_sequence` of a module).
  """

  def __init__(self, widths: tuple[int, ...], *, rows=None, rngs):
    init, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
    sizes = list(zip(widths, widths[1:]))
    self.w = nnx.List([axes.param(init, size, 'embed', 'unmodeled', rngs=rngs) for size in sizes])
    self.b = nnx.List([axes.param(zeros, (out,), 'unmodeled', rngs=rngs) for _, out in sizes])
    self.rows_per_sequence = rows

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [...,H] for x [...,D]: the first and the last of the widths are D and H."""
    *hidden, last = zip(self.w, self.b)
    for w, b in hidden:
      x = jax.nn.relu(linear.apply(x, w, b))
    return linear.apply(x, *last)
