"""SE-MoE's ring: a model's sections pass through K places on the device while it computes (arXiv:2205.10034).

K sections are copied first. While section i computes, section i + K is copied.
Differs: in our formulation (unverified) a section's place is free as soon as the section begins.
"""

from typing import NamedTuple

import numpy as np

from stmoe import errors


class Ring(NamedTuple):
  """warm: time of the first copies. time: f64[n] of each section. idle: f64[n], how long the device waits."""
  warm: float
  time: np.ndarray
  idle: np.ndarray


def ring(compute: np.ndarray, copy: np.ndarray, places: int) -> Ring:
  """Returns the Ring of n sections one after the other: section i takes max(compute_i, copy_{i+K}).

  Args:
    compute, copy: f[n], times; behind the last section nothing is copied.
    places: K; 2 is double buffering.

  >>> ring(np.array([1.0, 1.0, 4.0]), np.array([2.0, 2.0, 2.0]), 2).time.tolist()
  [2.0, 1.0, 4.0]
  """
  if places < 1:
    raise errors.UserError(f'places={places}: a ring holds at least one section; nearest: 1')
  later = np.concatenate([copy[places:], np.zeros(min(places, len(copy)))])        # [n]
  time = np.maximum(compute, later)
  return Ring(float(copy[:places].sum()), time, time - compute)
