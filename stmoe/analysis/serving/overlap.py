"""Time of a layer whose experts are on several devices: compute, and an exchange that overlaps with it.

Tokens are cut into chunks: while experts compute one, the next is on its way (Comet, arXiv:2502.19811).
Tokens are spread evenly over the devices and go home after every layer.
"""

import dataclasses

import numpy as np

from stmoe import errors


@dataclasses.dataclass(frozen=True)
class Costs:
  """In one unit of time: of a choice of a token in its expert, of sending it one way, of a message."""
  token: float = 1.0
  send: float = 1.0
  latency: float = 0.0


def overlapped(compute: float, communication: float, chunks: int) -> float:
  """Returns max(C, M) + min(C, M) / c, of compute C and communication M in c equal chunks; c = 1 is C + M.

  >>> overlapped(6.0, 2.0, 1), overlapped(6.0, 2.0, 4)
  (8.0, 6.5)
  """
  if chunks < 1:
    raise errors.UserError(f'chunks={chunks}: a layer is computed in at least one; nearest: 1')
  return max(compute, communication) + min(compute, communication) / chunks


def exchange(out: np.ndarray, into: np.ndarray, messages: int, costs: Costs) -> float:
  """Returns the time of an exchange: of the device that sends or gets most, and the latency of its messages.

  Args:
    out, into: f[G], choices that leave and reach a device.
    messages:  that a device sends.

  >>> exchange(np.array([3.0, 1.0]), np.array([1.0, 3.0]), 1, Costs(send=2.0, latency=0.5))
  6.5
  """
  return float(max(out.max(), into.max()) * costs.send + messages * costs.latency)


def layer(load: np.ndarray, chunks: int, costs: Costs) -> float:
  """Returns the time of a layer whose devices run load f[G] choices; both ways cost the same.

  On two devices 1 of 2 choices of the first is from the second, and 3 of 6 of the second from the first:

  >>> layer(np.array([2.0, 6.0]), 1, Costs())
  12.0
  """
  devices = len(load)
  into, out = load * (devices - 1) / devices, (load.sum() - load) / devices
  way = exchange(out, into, devices - 1, costs)
  return overlapped(float(load.max()) * costs.token, 2 * way, chunks)
