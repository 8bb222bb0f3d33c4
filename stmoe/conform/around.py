"""What everything that stands around a block must do."""

from stmoe.conform import generic
from stmoe.conform import in_model


def _block(name, fields):
  """The fields of a block that has it."""
  return in_model.DENSE | dict(around=dict(name=name) | generic.needed('around', name, fields))


(every_parameter_has_a_gradient, later_tokens_change_nothing, decoding_says_the_same,
 reports_of_microbatches_add_up) = in_model.checks(_block)
