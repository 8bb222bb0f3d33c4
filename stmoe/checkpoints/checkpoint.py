"""Checkpoints, and the only file that knows orbax.

A step is `state` (arrays), `data` (position of the data stream, JSON) and `meta` (JSON). `meta` has hashes
of configuration and vocabulary, shape, dtype and checksum of every array, and a digest of all this and
of `data`. A step appears under its number complete or not at all; the next run sweeps away what a kill
leaves behind. A save counts when the step was found again and all its arrays were opened. Arrays come
back onto the shardings of the run that reads them.
"""

import contextlib
import logging
import pathlib
import shutil
import sys

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checksum
from stmoe.checkpoints import seal
from stmoe.checkpoints import stored
from stmoe.hosts import job

TEMPORARY = '.orbax-checkpoint-tmp'      # in the names of what orbax has not finished
CLOSED = 'Event loop is closed'          # asyncio's words
PARAMETERS = ('float32', 'bfloat16')      # dtypes in which parameters may be kept
AGREE = 60_000                           # ms that a process which cannot read waits for others to say so


class Checkpoints:
  """The checkpoints of a run directory.

  Args:
    directory:  where they are, a folder a step.
    every:      steps between two checkpoints.
    keep:       how many of the newest to keep; the oldest goes when a newer one was seen whole; None = all.
    async_save: write in the background while training goes on.
    read_only:  change nothing there: a run may be writing.
  """

  def __init__(self, directory, every=1, keep=2, async_save=True, read_only=False):
    self.directory = pathlib.Path(directory).resolve()
    hush()
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(every),
        preservation_policy=policies.LatestN(None),                  # `wait` knows what may go
        enable_async_checkpointing=async_save, cleanup_tmp_directories=not read_only, read_only=read_only)
    self._read_only, self._async, self._keep = read_only, async_save, keep
    self._unseen = None                  # the step that was saved and not looked at since
    with _readable(self.directory):
      if not read_only:
        self.directory.mkdir(parents=True, exist_ok=True)
      self._place = files.plain_path(self.directory)
      self._manager = ocp.CheckpointManager(self._place, options=options,
                                            item_names=('state', 'data', 'meta'))

  def due(self, step):
    """Returns whether step `step` is to be saved."""
    return self._manager.should_save(step)

  def steps(self):
    """Returns the saved steps in ascending order."""
    return sorted({*self._manager.all_steps()} & {*stored.steps(self.directory)})

  def save(self, step, state, data, meta):
    """Saves step `step` (again a no-op) from now on; the arrays may be donated right after.

    Raises UserError for numbers that are not finite, if the disk is full, or if the step saved before is
    not there. Earlier steps stay.
    """
    if step in self._manager.all_steps():
      return
    self.wait()
    arrays, name = checksum.examined(state)
    if name:
      raise errors.UserError(f'step {step} was not saved: {name} is not finite after it; {self._saved()}; '
                             'try a smaller learning rate')
    job.first(lambda: self._check_space(step, sum(x.nbytes for x in jax.tree.leaves(state))))
    meta = seal.close(meta | {'arrays': arrays}, data)
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data),
                              meta=ocp.args.JsonSave(meta))
    with _readable(self.directory, self._saved):
      self._manager.save(step, args=args, force=True)
    self._unseen = step
    if not self._async:
      self.wait()

  def _check_space(self, step, needed):
    free = shutil.disk_usage(self.directory).free
    if free < needed:
      raise errors.UserError(f'no space left on device: the checkpoint of step {step} needs {needed:,} bytes '
                             f'and {self.directory} has {free:,}; {self._saved()}')

  def wait(self):
    """Returns when everything saved is on disk and was opened again; raises UserError if not.

    Then older checkpoints go. One process looks, and the other processes do not wait: a process may come here
    alone, when it ends.
    """
    with _readable(self.directory, self._saved):
      self._manager.wait_until_finished()
    step, self._unseen = self._unseen, None
    if step is not None and job.leads():
      self._look(step)
      for old in stored.steps(self.directory)[:-self._keep] if self._keep else ():
        self._drop(old)

  def _look(self, step):
    """Raises UserError unless step `step` is listed, its meta is whole and all its arrays can be opened.

    The arrays' own bytes are not read again. Names, shapes and lists of parts show whether
    what was written is what will be looked for.
    """
    listed = step in stored.steps(self.directory)
    try:
      lost = stored.Reader(self.directory, step).missing() if listed else 'all of it'
    except Exception as error:           # tensorstore raises whatever is broken
      lost = str(error) if isinstance(error, errors.UserError) else files.reason(error)
    if lost:
      free = shutil.disk_usage(self.directory).free
      raise errors.UserError(f'the checkpoint of step {step} was written to {self.directory}, which has '
                             f'{free:,} bytes free, and cannot be read again ({lost}); '
                             f'{self._saved(but=step)}')

  def take_back(self, step):
    """Deletes the steps after `step`."""
    later = [at for at in self.steps() if at > step]
    job.first(lambda: list(map(self._drop, later)))
    self._manager.reload()

  def _drop(self, step):
    """Deletes a step; under a name that the next run sweeps away, should it be killed meanwhile."""
    gone = self.directory / f'{step}{TEMPORARY}'
    (self.directory / str(step)).rename(gone)
    shutil.rmtree(gone)

  def close(self):
    """Waits as `wait` does, then lets go of the background threads."""
    try:
      self.wait()
    finally:
      with _readable(self.directory, self._saved):
        self._manager.close()

  def restore(self, shapes, check, say, step=None):
    """Returns (step, state, data, meta) of the newest readable checkpoint, or None without any.

    An unreadable checkpoint is reported, and the checkpoint before is tried. Unless read_only it moves to
    `<directory>/../unreadable`, to make room for that step.

    Args:
      shapes: tree of ShapeDtypeStructs with shardings.
      check:  called with `meta`; raises UserError if the checkpoint belongs to something else.
      say:    called with a line of text about anything unusual.
      step:   only this step.
    Raises:
      UserError: arrays of other shapes, no such step, or none of the checkpoints can be read.
    """
    if step is not None:
      stored.present(self.directory, step)
    steps = self.steps()
    doubtful: dict[int, errors.UserError] = {}       # of format 1: it may be its meta that is damaged
    for at in [step] if step is not None else reversed(steps):
      before = [s for s in steps if s < at]
      try:
        restored, broken = self._try(at, shapes, check)
      except errors.UserError as error:
        if not before or step is not None or self._sealed(at):
          raise next(iter(doubtful.values()), error) from None
        doubtful[at] = error
        continue
      if broken is None:
        for other, why in doubtful.items():
          self._pass_by(other, str(why), f'falling back to step {at}', say)
        return at, *restored
      falls = f'falling back to step {before[-1]}' if before and step is None else 'there is none before it'
      self._pass_by(at, broken, falls, say, aside=step is None)
    if doubtful:
      raise next(iter(doubtful.values()))
    if steps:
      raise errors.UserError(f'no checkpoint in {self.directory} can be read; start in another directory')
    return None

  def _pass_by(self, step, broken, falls, say, aside=True):
    """Says that step `step` is broken, and sets it aside unless nothing may be changed."""
    say(f'checkpoint {step} cannot be read ({broken}); {falls}')
    if aside and not self._read_only:
      job.first(lambda: self._set_aside(step))
      self._manager.reload()

  def _sealed(self, step):
    """Whether the meta of a step has a digest, and so is what was saved or known to be damaged."""
    try:
      return 'format' in seal.read(self._place / str(step))[0]
    except ValueError:
      return True

  def _try(self, step, shapes, check):
    """(what `_read` returns, None), or (None, a line about the damage): the same on all processes."""
    try:
      content, broken = self._read(step, shapes, check), None
    except errors.UserError:
      raise
    except Exception as error:           # orbax and tensorstore raise whatever the bytes happen to break
      if job.lost(error):
        raise
      content, broken = None, _line(error)
    try:
      return content, next(filter(None, job.exchange(broken, AGREE if broken else job.LONG)), None)
    except Exception as error:           # other processes wait in orbax for this process
      if not self._read_only:
        self._set_aside(step)
      raise errors.UserError(f'process {job.index()} cannot read checkpoint {step} ({broken}); the same '
                             'command falls back to the one before') from error

  def _read(self, step, shapes, check):
    meta, data = seal.read(self._place / str(step))
    check(meta)
    check_shapes(meta['arrays'], shapes)
    kept = _kept(shapes, meta['arrays'])
    state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(kept))).state
    if changed := _changed(state, meta):
      raise ValueError(f'{changed} is not what was saved')
    return _cast(state, shapes), data, meta

  def part(self, shapes, check, step=None):
    """Returns (step, arrays, names) of a checkpoint: the arrays of `shapes` that it has in that shape.

    Args:
      shapes: nested dict of ShapeDtypeStructs with shardings, of parts of a state.
      check:  called with `meta`.
      step:   None = the newest.
    Returns:
      arrays: dict path -> array; names: dict path -> shape of all arrays of the checkpoint.
    """
    newest = stored.present(self.directory, step)[-1]
    at = newest if step is None else step
    try:
      meta, _ = seal.read(self._place / str(at))
    except ValueError as error:
      raise errors.UserError(f'checkpoint {at} of {self.directory} cannot be read: {error}') from error
    check(meta)
    names = {name: tuple(shape) for name, (shape, *_) in meta['arrays'].items()}
    fitting = {checksum.name(path): s for path, s in jax.tree.leaves_with_path(shapes)}
    fitting = {name: s for name, s in fitting.items() if names.get(name) == tuple(s.shape)}
    tree = _kept(_nested(fitting), meta['arrays'])
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(self._place / str(at) / 'state', args=ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True))
      changed = _changed(restored, meta)
    except Exception as error:           # orbax and tensorstore raise whatever the bytes happen to break
      raise errors.UserError(f'checkpoint {at} of {self.directory} cannot be read: {_line(error)}') from error
    if changed:
      raise errors.UserError(f'checkpoint {at} of {self.directory}: {changed} is not what was saved')
    arrays = {checksum.name(path): x for path, x in jax.tree.leaves_with_path(restored)}
    return at, _cast(arrays, fitting), names

  def _set_aside(self, step):
    aside = self.directory.parent / 'unreadable'
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (self.directory / str(step)).rename(aside / str(step))

  def _saved(self, but=None):
    steps = [step for step in stored.steps(self.directory) if step != but]
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


def _kept(shapes, inventory):
  """Tree `shapes` with the dtypes of parameters that the `inventory` of a checkpoint says."""
  def kept(path, shape):
    dtype = (inventory[checksum.name(path)][2:] or [''])[0]
    return shape.update(dtype=dtype) if dtype in PARAMETERS and dtype != str(shape.dtype) else shape
  return jax.tree.map_with_path(kept, shapes)


def _cast(arrays, like):
  """`arrays` in the dtypes of `like`, where they are others."""
  return jax.tree.map(lambda x, s: x if x.dtype == s.dtype else x.astype(s.dtype), arrays, like)


def _changed(state, meta):
  """The path of the first array of `state` that is not what `meta` says was saved, or None."""
  sums = checksum.inventory(state) if 'format' in meta else checksum.plain_sums(state)
  return next((name for name, entry in sums.items() if entry != meta['arrays'][name]), None)


def check_shapes(saved, shapes):
  """Raises UserError for the first array whose shape in the inventory `saved` is not that in `shapes`."""
  own = {name: tuple(shape) for name, (shape, *_) in saved.items()}
  wanted = {checksum.name(path): tuple(s.shape) for path, s in jax.tree.leaves_with_path(shapes)}
  for name in sorted({*own, *wanted}):
    if own.get(name) != wanted.get(name):
      raise errors.UserError(f'the checkpoint does not fit the model: {name} is {own.get(name, "absent")} '
                             f'in it and {wanted.get(name, "absent")} in the model')


@contextlib.contextmanager
def _readable(directory, saved=lambda: ''):
  """Turns a full disk into a UserError that says what is safe."""
  try:
    yield
  except Exception as error:
    if files.full(error):
      raise errors.UserError(f'no space left on device: {directory}; {saved()}') from error
    raise


def _line(error):
  """The first words of an error of another library."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:120]}'


def hush():
  """Keeps orbax's own reports off the terminal; failures arrive as exceptions.

  Reads that end after another read has failed report to a loop that is closed. Python would print a
  traceback of each of them.
  """
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  if not isinstance(sys.unraisablehook, _Hook):
    sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
  """The hook `before` for exceptions that nobody can catch, without those of late reads."""

  def __init__(self, before):
    self._before = before

  def __call__(self, unraisable):
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == CLOSED
    if not late:
      self._before(unraisable)
