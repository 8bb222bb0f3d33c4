"""What every attention that stands in a causal block must do."""

from stmoe.conform import generic
from stmoe.conform import in_model


def _block(name, fields):
  """The fields of a block that has it."""
  return in_model.DENSE | dict(attention=dict(name=name) | generic.needed('attention', name, fields))


(every_parameter_has_a_gradient, later_tokens_change_nothing, decoding_says_the_same,
 reports_of_microbatches_add_up) = in_model.checks(_block)
