"""What every head of an encoder must do: two logits of every position, of a row by itself."""

from flax import nnx
import jax.numpy as jnp

from stmoe import lookup
from stmoe.conform import by_itself
from stmoe.conform import generic
from stmoe.core import contract


@generic.cached
def _build(name, **fields):
  needed = generic.needed('head', name, dict(length=by_itself.T) | fields)
  return lookup.recipe('head', dict(name=name) | needed)(by_itself.D, rngs=nnx.Rngs(0))


# A head's losses are of rows.
_HEAD = by_itself.Kind(__name__, _build, by_itself.sub_layer(
    lambda mask: jnp.sum(mask.any(1), dtype=jnp.float32)))


def answers(name: str, **fields) -> None:
  """It returns (logits f32[B,T,2], what it reports, a carry like the one it got), of float32 and bfloat16."""
  head, wanted = _build(name, **fields), (by_itself.B, by_itself.T, 2)
  for dtype in (jnp.float32, jnp.bfloat16):
    y, aux, kept = by_itself.call(_HEAD, head, jnp.asarray(by_itself.X, dtype))
    assert y.shape == wanted and y.dtype == jnp.float32, (
        f'logits are {y.dtype}{list(y.shape)} of {jnp.dtype(dtype)}; wanted: float32{list(wanted)}')
    assert kept, 'the carry is not like the one that was given'
    for part, report in contract.keyed('head', aux).items():
      assert isinstance(report, contract.Aux), f'{part} reports a {type(report).__name__}; wanted: Aux'


(padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
 evaluation_draws_nothing) = by_itself.checks(_HEAD)
