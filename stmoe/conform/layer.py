"""What every layer must do that stands in a block."""

import jax.numpy as jnp

from stmoe.conform import by_itself
from stmoe.conform import generic
from stmoe.conform import in_model
from stmoe.core import contract


@generic.cached
def _build(name, **fields):
  return generic.layer(name, by_itself.D, **fields)


_LAYER = by_itself.Kind(__name__, _build, by_itself.sub_layer(lambda mask: jnp.sum(mask, dtype=jnp.float32)))


def answers(name: str, **fields) -> None:
  """It returns (y like x, what it reports, a carry like the one it got), in float32 and in bfloat16."""
  layer, x = _build(name, **fields), jnp.asarray(by_itself.X)
  for dtype in (jnp.float32, jnp.bfloat16):
    y, aux, kept = by_itself.call(_LAYER, layer, x.astype(dtype))
    of_x = f'{x.astype(dtype).dtype}{list(x.shape)}'
    assert y.shape == x.shape and y.dtype == dtype, f'y is {y.dtype}{list(y.shape)} for {of_x}'
    assert kept, 'the carry is not like the one that was given'
    for part, report in contract.keyed('layer', aux).items():
      assert isinstance(report, contract.Aux), f'{part} reports a {type(report).__name__}; wanted: Aux'


(padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
 evaluation_draws_nothing) = by_itself.checks(_LAYER)


def reports_of_microbatches_add_up(name: str, **fields) -> None:
  """Losses, loads and metrics of training are of the whole batch, in one part or in microbatches."""
  in_model.reports_of_microbatches_add_up(layer=name, **generic.needed('layer', name, fields))


def decoding_says_the_same(name: str, **fields) -> None:
  """Decoding with a cache says what the whole text does, or `undecodable` is said."""
  in_model.decoding_says_the_same(layer=name, **generic.needed('layer', name, fields))
