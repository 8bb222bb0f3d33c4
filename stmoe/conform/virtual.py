"""What every virtual expert must do."""

from stmoe.conform import generic
from stmoe.conform import in_model


def _block(name, fields):
  """The fields of a block that has it."""
  return in_model.SPARSE | dict(virtual=(dict(name=name) | generic.needed('virtual', name, fields),))


(every_parameter_has_a_gradient, later_tokens_change_nothing, decoding_says_the_same,
 reports_of_microbatches_add_up) = in_model.checks(_block)
