"""What foresees the experts of the next layer, so that they are loaded while a layer computes.

A prediction is f[steps,L,E]: how much a step's token is expected to want each expert of a layer, as it is
known before that layer; 0 = not at all. Another one than these is the next layer's router on the hidden state
of the layer before. Recordings do not hold it.
"""

import numpy as np

from stmoe.analysis import serving


def most_used(trace: serving.Trace) -> np.ndarray:
  """Returns f64[steps,L,E], at every step an expert's part of its layer's requests in the whole trace.

  >>> most_used(serving.Trace(np.array([[[0]], [[1]], [[1]], [[1]]]), 2))[0].tolist()
  [[0.25, 0.75]]
  """
  count = serving.loads(trace)                                       # [L, E]
  share = count / np.maximum(count.sum(-1, keepdims=True), 1)
  return np.broadcast_to(share, (len(trace.chosen), *share.shape))


def oracle(trace: serving.Trace) -> np.ndarray:
  """Returns f64[steps,L,E], 1 for each expert that the token will choose: no prediction is better.

  >>> oracle(serving.Trace(np.array([[[1, -1]]]), 2)).tolist()
  [[[0.0, 1.0]]]
  """
  wanted = np.zeros((*trace.chosen.shape[:2], trace.num_experts + 1))
  np.put_along_axis(wanted, trace.chosen, 1.0, axis=2)               # -1 is the last expert's place
  return wanted[..., :-1]


PREDICTIONS = dict(most_used=most_used, oracle=oracle)
