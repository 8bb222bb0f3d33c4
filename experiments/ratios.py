"""Logarithms of errors: the difference of two is a ratio, and problems of unlike difficulty count alike."""

import math


def logarithms(values):
  """Returns dict seed -> natural logarithm of an error; None stays None.

  >>> logarithms({0: 1.0, 1: None})
  {0: 0.0, 1: None}
  """
  return {seed: None if value is None else math.log(value) for seed, value in values.items()}
