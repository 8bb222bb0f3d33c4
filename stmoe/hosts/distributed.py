"""Arrays of which a process has only a part: its rows of a batch, reading, and a vote to stop."""

import collections

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from stmoe import axes
from stmoe import errors


def shard(mesh, rows):
  """Returns (index, number): this process holds part `index` of `number` equal runs of a batch's `rows`.

  Processes that differ only in mesh axes over which a batch is not split hold the same rows.
  """
  own = jax.process_index()
  spans = spans_of(NamedSharding(mesh, axes.spec(('batch',))), rows)
  mine = sorted({span for device, span in spans.items() if device.process_index == own})
  start, size = mine[0][0], sum(end - begin for begin, end in mine)
  if mine[-1][1] - start != size or start % size or rows % size:
    runs = ', '.join(f'{begin}-{end - 1}' for begin, end in mine)
    processes = jax.process_count()
    raise errors.UserError(f'mesh {dict(mesh.shape)} gives process {own} of {processes} the rows {runs} of '
                           f'{rows}, which are not one run; nearest: mesh.data={processes}')
  return start // size, rows // size


def spans_of(sharding, rows):
  """Returns dict device -> (first row, row after the last) of an array of `rows` rows."""
  places = sharding.devices_indices_map((rows,))
  return {device: rows_of.indices(rows)[:2] for device, (rows_of,) in places.items()}


def everywhere(mesh):
  """Returns the sharding of arrays that every device has in full."""
  return NamedSharding(mesh, PartitionSpec())


def fetch(tree):
  """Returns a tree of arrays as numpy, even where a process has only a part; all processes must call."""
  return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x):
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return x
  return jax.jit(_same, out_shardings=everywhere(x.sharding.mesh))(x)


def _same(x):
  return x                               # a function with a name is compiled once for arrays of a shape


class Ballot:
  """Lets all processes of a job stop after the same step, whichever process was told to.

  A vote is a number per device and its maximum, asked for with the step. It is read `ahead` votes later, when
  it is long there. So all processes read the same value at the same step, and none waits.

  Args:
    stop:  has `code`, the exit code this process wishes for, or 0.
    ahead: votes between a vote and its reading.
  """

  def __init__(self, mesh, stop, ahead):
    self._stop, self._ahead, self._votes = stop, ahead, collections.deque()
    self._number = mesh.devices.size
    self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._alone = jax.process_count() == 1
    self._max = jax.jit(jnp.max, out_shardings=everywhere(mesh))
    self._code = 0

  def cast(self):
    """Votes; called once after every step."""
    if self._alone:
      return
    mine = np.full((1,), self._stop.code, np.int32)
    self._votes.append(self._max(jax.make_array_from_callback((self._number,), self._split, lambda _: mine)))
    if len(self._votes) > self._ahead:
      self._code = max(self._code, int(self._votes.popleft()))

  def code(self):
    """Returns the exit code to stop with after this step, or 0: the same on all processes."""
    return self._stop.code if self._alone else self._code

  def last(self):
    """Returns the same exit code at the end of training, when no vote is to follow."""
    while self._votes:
      self._code = max(self._code, int(self._votes.popleft()))
    return self.code()
