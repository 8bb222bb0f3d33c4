"""What a fit has to know about a coefficient of a law."""

from typing import NamedTuple


class Coefficient(NamedTuple):
  """Bounds and starting values of a coefficient.

  low, high: bounds of the fit.
  starts:    values of the grid that a fit starts from.
  log:       whether its logarithm is fitted (positive, of unknown magnitude).
  """
  low: float
  high: float
  starts: tuple
  log: bool = False
