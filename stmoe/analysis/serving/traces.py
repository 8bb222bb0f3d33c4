"""Traces of recordings of routing: what `stmoe record` wrote, as simulators read it."""

import pathlib

from stmoe import errors
from stmoe.analysis import serving
from stmoe.data import recording


def read(path: str | pathlib.Path) -> dict[str, serving.Trace]:
  """Returns dict stack -> Trace of a recording; its texts are read token by token, one after the other.

  Raises errors.Damaged for another file, and UserError for a recording without a choice.
  """
  about, batch, routes = recording.read(path)
  traces = {}
  for stack, chosen in routes.items():
    real = batch[f'{stack}_segment_ids'] > 0
    if chosen.size and real.any():
      traces[stack] = serving.recorded(chosen, real, recording.experts(about, stack))
  if not any((trace.chosen >= 0).any() for trace in traces.values()):
    raise errors.UserError(f'{path}: no token has an expert')
  return traces
