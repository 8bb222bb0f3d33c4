"""What everything that stands around a block must do."""

from stmoe.conform import generic
from stmoe.conform import in_model


def every_parameter_has_a_gradient(name: str, **fields) -> None:
  """Every parameter of a model with it has a finite gradient, not 0, in training."""
  in_model.every_parameter_has_a_gradient(**_block(name, fields))


def later_tokens_change_nothing(name: str, **fields) -> None:
  """In evaluation no later token changes what a model with it says of an earlier one."""
  in_model.later_tokens_change_nothing(**_block(name, fields))


def decoding_says_the_same(name: str, **fields) -> None:
  """Decoding with a cache says what the whole text does, or `undecodable` is said."""
  in_model.decoding_says_the_same(**_block(name, fields))


def _block(name, fields):
  """The fields of a block that has it."""
  return in_model.DENSE | dict(around=dict(name=name) | generic.needed('around', name, fields))
