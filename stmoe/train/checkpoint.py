"""Checkpoints, and the only file that knows orbax.

A step is `state` (arrays), `data` (position of the data stream, JSON) and `meta` (JSON: hashes
of configuration and vocabulary, checksum of every array). It appears under its number complete
or not at all; what a kill leaves behind is swept away by the next run. Arrays come back onto
the shardings of the run that reads them.
"""

import contextlib
import errno
import functools
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from stmoe import errors
from stmoe.train import distributed
from stmoe.train import job

FULL = (errno.ENOSPC, errno.EDQUOT)
AGREE = 60_000                           # ms that one which cannot read waits for the others to say so, too
FULL_TEXTS = ('No space left on device', 'Disk quota exceeded')


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory:  where they are, one folder a step.
    every:      steps between two.
    keep:       how many of the newest to keep; an older one goes when a newer one is complete; None = all.
    async_save: write in the background while training goes on.
    read_only:  change nothing there: a run may be writing.
  """

  def __init__(self, directory, every=1, keep=2, async_save=True, read_only=False):
    self.directory = pathlib.Path(directory).resolve()
    hush()
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(every),
        preservation_policy=policies.LatestN(keep),
        enable_async_checkpointing=async_save, cleanup_tmp_directories=not read_only, read_only=read_only)
    self._read_only = read_only
    with _readable(self.directory):
      self._manager = ocp.CheckpointManager(self.directory, options=options,
                                            item_names=('state', 'data', 'meta'))

  def due(self, step):
    """Returns whether step `step` is one to save."""
    return self._manager.should_save(step)

  def steps(self):
    """Returns the saved steps in ascending order."""
    return sorted(self._manager.all_steps())

  def save(self, step, state, data, meta):
    """Saves step `step` (again a no-op) from now on; the arrays may be donated right after.

    Raises UserError if the disk is full; what was saved before stays.
    """
    if step in self._manager.all_steps():
      return
    job.first(lambda: self._check_space(step, sum(x.nbytes for x in jax.tree.leaves(state))))
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data),
                              meta=ocp.args.JsonSave(meta | {'arrays': inventory(state)}))
    with _readable(self.directory, self._saved):
      self._manager.save(step, args=args, force=True)

  def _check_space(self, step, needed):
    free = shutil.disk_usage(self.directory).free
    if free < needed:
      raise errors.UserError(f'no space left on device: the checkpoint of step {step} needs {needed:,} bytes '
                             f'and {self.directory} has {free:,}; {self._saved()}')

  def wait(self):
    """Returns when everything saved is on disk; raises UserError if the disk is full."""
    with _readable(self.directory, self._saved):
      self._manager.wait_until_finished()

  def close(self):
    """Waits, then lets go of the background threads."""
    with _readable(self.directory, self._saved):
      self._manager.close()

  def restore(self, shapes, check, say, step=None):
    """Returns (step, state, data, meta) of the newest readable checkpoint, or None without any.

    An unreadable one is reported and the one before is tried; unless read_only it moves to
    `<directory>/../unreadable`, to make room for that step.

    Args:
      shapes: tree of ShapeDtypeStructs with shardings.
      check:  called with `meta`; raises UserError if the checkpoint belongs to something else.
      say:    called with a line of text about anything unusual.
      step:   only this one.
    Raises:
      UserError: arrays of other shapes, no such step, or none of the checkpoints can be read.
    """
    steps = self.steps()
    if step is not None and step not in steps:
      raise errors.UserError(f'{self.directory} has no checkpoint of step {step} (there are: '
                             f'{", ".join(map(str, steps)) or "none"})')
    for at in [step] if step is not None else reversed(steps):
      found, broken = self._try(at, shapes, check)
      if broken is None:
        return at, *found
      before = [s for s in steps if s < at]
      falls = f'falling back to step {before[-1]}' if before and step is None else 'there is none before it'
      say(f'checkpoint {at} cannot be read ({broken}); {falls}')
      if step is None and not self._read_only:
        job.first(lambda at=at: self._set_aside(at))
        self._manager.reload()
    if steps:
      raise errors.UserError(f'no checkpoint in {self.directory} can be read; start in another directory')
    return None

  def _try(self, step, shapes, check):
    """(what `_read` returns, None), or (None, a line about what is broken): the same on all processes."""
    try:
      found, broken = self._read(step, shapes, check), None
    except errors.UserError:
      raise
    except Exception as error:           # orbax and tensorstore raise whatever the bytes happen to break
      if job.lost(error):
        raise
      found, broken = None, _line(error)
    try:
      return found, next(filter(None, job.exchange(broken, AGREE if broken else job.LONG)), None)
    except Exception as error:           # the others wait in orbax for this one
      if not self._read_only:
        self._set_aside(step)
      raise errors.UserError(f'process {job.index()} cannot read checkpoint {step} ({broken}); the same '
                             'command falls back to the one before') from error

  def _read(self, step, shapes, check):
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    check(meta)
    check_shapes(meta['arrays'], shapes)
    found = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()))
    if inventory(found.state) != meta['arrays']:
      raise ValueError('an array is not what was saved')
    return found.state, found.data, meta

  def part(self, shapes, check, step=None):
    """Returns (step, arrays, names) of a checkpoint: those of `shapes` it has in that shape, and what it has.

    Args:
      shapes: nested dict of ShapeDtypeStructs with shardings, of parts of a state.
      check:  called with `meta`.
      step:   None = the newest.
    Returns:
      arrays: dict path -> array; names: dict path -> shape of all arrays of the checkpoint.
    """
    steps = self.steps()
    if not steps or step is not None and step not in steps:
      which = '' if step is None else f' of step {step}'
      raise errors.UserError(f'{self.directory} has no checkpoint{which} (there are: '
                             f'{", ".join(map(str, steps)) or "none"})')
    at = steps[-1] if step is None else step
    meta = self._manager.restore(at, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    check(meta)
    there = {name: tuple(shape) for name, (shape, _) in meta['arrays'].items()}
    wanted = {_name(path): s for path, s in jax.tree.leaves_with_path(shapes)}
    wanted = {name: s for name, s in wanted.items() if there.get(name) == tuple(s.shape)}
    tree = _nested(wanted)
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(self.directory / str(at) / 'state', args=ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True))
      sums = inventory(found)
    except Exception as error:           # orbax and tensorstore raise whatever the bytes happen to break
      raise errors.UserError(f'checkpoint {at} of {self.directory} cannot be read: {_line(error)}') from error
    for name, one in sums.items():
      if one != meta['arrays'][name]:
        raise errors.UserError(f'checkpoint {at} of {self.directory}: {name} is not what was saved')
    return at, {_name(path): x for path, x in jax.tree.leaves_with_path(found)}, there

  def _set_aside(self, step):
    aside = self.directory.parent / 'unreadable'
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (self.directory / str(step)).rename(aside / str(step))

  def _saved(self):
    steps = sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())
    return f'saved and intact: {", ".join(f"step {s}" for s in steps) or "none"}'


def _nested(flat):
  """The nested dict of a dict path -> value."""
  tree = {}
  for name, value in flat.items():
    node, keys = tree, name.split('/')
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = value
  return tree


def _sums(state):
  def one(x):
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    x = jax.lax.bitcast_convert_type(x, unsigned) if x.dtype != bool else x
    return jnp.sum(x.astype(jnp.uint32), dtype=jnp.uint32)
  return jax.tree.map(one, state)


@functools.cache
def _summer(sharding):
  return jax.jit(_sums, out_shardings=sharding)


def inventory(state):
  """Returns dict path -> [shape, checksum] of the arrays of `state`, for JSON.

  The checksum is the sum of an array's words modulo 2^32: the same on any sharding.
  """
  mesh = next((x.sharding.mesh for x in jax.tree.leaves(state) if hasattr(x.sharding, 'mesh')), None)
  sums = jax.device_get(_summer(mesh and distributed.everywhere(mesh))(state))
  return {_name(path): [list(x.shape), int(s)]
          for (path, x), s in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(sums))}


def check_shapes(saved, shapes):
  """Raises UserError for the first array whose shape in the inventory `saved` is not that in `shapes`."""
  there = {name: tuple(shape) for name, (shape, _) in saved.items()}
  here = {_name(path): tuple(s.shape) for path, s in jax.tree.leaves_with_path(shapes)}
  for name in sorted({*there, *here}):
    if there.get(name) != here.get(name):
      raise errors.UserError(f'the checkpoint does not fit the model: {name} is {there.get(name, "absent")} '
                             f'in it and {here.get(name, "absent")} in the model')


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


@contextlib.contextmanager
def _readable(directory, saved=lambda: ''):
  """Turns a full disk into a UserError that says what is safe."""
  try:
    yield
  except Exception as error:
    if full_disk(error):
      raise errors.UserError(f'no space left on device: {directory}; {saved()}') from error
    raise


def full_disk(error):
  """Returns whether a full disk is behind `error`; libraries wrap it in errors of their own."""
  while error is not None:
    if getattr(error, 'errno', None) in FULL or any(text in str(error) for text in FULL_TEXTS):
      return True
    error = error.__cause__ or error.__context__
  return False


def _line(error):
  """The first words of an error of another library."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:120]}'


def hush():
  """Keeps orbax's own reports off the terminal; what goes wrong arrives as an exception."""
  logging.getLogger('absl').setLevel(logging.CRITICAL)
