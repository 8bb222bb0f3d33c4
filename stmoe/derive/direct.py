"""Downloaded folders straight onto devices: each device reads its own slices of the tensors, and no more.

No run directory is written. A host holds a slice at a time, besides what its devices hold.
"""

from collections.abc import Sequence
import functools
import itertools
import pathlib
import typing

import jax
import ml_collections
import numpy as np

from stmoe.derive.conversion import importing
from stmoe.derive import pieces
from stmoe.interop import rules
from stmoe.surgery import layout
from stmoe.train import state as states


class Opened(typing.NamedTuple):
  """A model on its devices: the configuration that a conversion would write, the Blueprint, the module."""
  cfg: ml_collections.ConfigDict
  plan: states.Blueprint
  model: typing.Any


def opened(folder: str | pathlib.Path, mesh: dict | None = None, overrides: Sequence[str] = (),
           dtype: str | None = None, devices: Sequence[jax.Device] | None = None) -> Opened:
  """Returns the Opened model of a folder of safetensors, its arrays sharded over the devices.

  Args:
    mesh:      fields of section `mesh`: dict(data=1, expert=4, model=2); None = all devices share experts.
    overrides: see `convert.read`; dtype: of parameters, see there.
    devices:   None = all.
  Raises:
    UserError: as `convert.read` does; and for a mesh that does not divide an array.
  """
  _, family, sections, tensors, _ = importing.opened(pathlib.Path(folder))
  cfg = importing.configuration(sections, overrides)
  with states.on_mesh(mesh or dict(data=1, expert=-1, model=1), devices) as on:
    plan, placed = importing.planned(cfg, on, family, tensors, dtype)
    importing.unplaced(cfg, family, placed, tensors)
    begun = jax.jit(lambda: states.fresh(cfg, plan)['router_state'],
                    out_shardings=plan.shardings()['router_state'])()
    state = layout.together(dict(params={}, router_state=begun))
    for leaf, group in itertools.groupby(placed, lambda place: place.leaf):
      like, places = layout.at(plan.shapes, leaf), list(group)
      if places[0].tensor is not None:
        read = functools.partial(_slice, places, tensors, like)
        layout.put(state, leaf, jax.make_array_from_callback(like.shape, like.sharding, read,
                                                             dtype=like.dtype))
    return Opened(cfg, plan, plan.model(state['params'], state['router_state']))


def _slice(places, found, like, index):
  """The part `index` (a slice of each axis) of an array, of the tensors that are in this part alone."""
  spans = [range(*at.indices(size)) for at, size in zip(index, like.shape)]
  part = np.empty([len(span) for span in spans], like.dtype)
  lead = len(places[0].index)
  for place in places:
    if all(number in span for number, span in zip(place.index, spans)):
      at = tuple(number - span.start for number, span in zip(place.index, spans))
      part[at] = _piece(place, found, like.dtype, spans[lead:])
  return part


def _piece(place, found, dtype, spans):
  """The entries `spans` (a range of each axis of a slice of ours) of the tensor of a Place."""
  there = spans[::-1] if place.op == rules.LINEAR else spans
  tensor = pieces.of(found, place)
  if not there:
    return pieces.turned(tensor.read(), place, dtype)
  columns = tuple(slice(span.start, span.stop) for span in there[1:])
  rows = tensor.read(there[0].start, there[0].stop)[(slice(None), *columns)]
  return pieces.turned(rows, place, dtype)
