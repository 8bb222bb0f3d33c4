"""Compression: a new run whose parameters a surgery made from a trained run's (see `surgery/sparse.py`).

Factorisation, from dense to sparse, is the same with surgeries of another kind (see `surgery/dense.py`). The
new run starts at step 0 with fresh optimizer slots, with the data and the vocabulary of the old run.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import copy
import pathlib

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.core import checked
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.derive.calibration import calibrate
from stmoe.derive import start as starts
from stmoe.derive import streamed
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.runs import whole as beside
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.surgery import sparse
from stmoe.train import check
from stmoe.train import evaluate as evaluation
from stmoe.train import loop
from stmoe.train import state as states


def compress(run: str | pathlib.Path, surgery: str, workdir: str | pathlib.Path,
             overrides: Sequence[str] = (), *, kind: str = 'surgery', distil: str = '', batches: int = 16,
             evaluate: bool = False, step: int | None = None, say: Callable = print, devices=None) -> dict:
  """Writes run directory `workdir` with what `surgery` makes of `run`; returns the facts of ancestry.json.

  dict(parameters, bytes: of the old and of the new model, with its state of routers; changes: of the
  configuration; family: of the files that the run came from, or None; calibration_seconds: of processors, for
  the passes over the data, kept ones included).

  Args:
    surgery:   text, see `lookup.bound`: 'prune:keep=0.5,by=reap'.
    kind:      of the surgery: 'surgery', or 'factorisation' of a dense run.
    overrides: texts '--config.a.b=value' on the run's configuration; the model stays what it is.
    distil:    text of a target with a teacher, 'mc_smoe:weight=0.3'. This target is the loss of the new run,
      around its own loss, and `run` is the teacher; '' = the loss stays.
    batches:   of the run's training data, for surgeries that look at data.
    evaluate:  the new model, before anything trains; its metrics are those of step 0.
    step:      of the checkpoint; None = the newest.
    say:       called with lines of text.
    devices:   None = all.
  Raises:
    UserError: `workdir` is in use, or the surgery is not possible; nothing is written then.
  """
  operate, method = lookup.bound(kind, surgery), _described(kind, surgery)
  return derived(run, operate, method, workdir, overrides, distil=distil, batches=batches,
                 evaluate=evaluate, step=step, say=say, devices=devices)


def derived(run: str | pathlib.Path, operate: Callable, method: tuple[str, dict], workdir: str | pathlib.Path,
            overrides: Sequence[str] = (), *, distil: str = '', batches: int = 16, evaluate: bool = False,
            step: int | None = None, say: Callable = print, devices=None,
            keep: Callable[[pathlib.Path], None] = lambda path: None) -> dict:
  """Returns what `compress` does, for a surgery that is a function and not the text of a file's.

  Args:
    operate: see `surgery/sparse.py`, its own fields bound.
    method:  (name, fields) of it, for the record.
    keep:    called with the run directory, before the run is claimed: what else is to be in it.
  """
  learning = _distilling(distil)
  starts.unused(workdir)
  starts.trained(run)
  own_cfg = rundir.opened(run, step)
  cfg = experiment.override(copy.deepcopy(own_cfg), overrides, whole=False)
  check.counts(cfg)
  loop.keep_compilations()
  with states.on_mesh(cfg.mesh, devices) as mesh:
    check.batches(cfg)
    located = record.read(run).located(cfg)
    plan = states.blueprint(located, mesh)
    own_shapes = _own_plan(run, own_cfg, mesh).shapes
    reader = _reader(run, own_shapes, step, say)
    source = Source(cfg, run, plan, say)
    saved = _saved(reader, own_shapes)
    calibration = calibrate.Calibration(run, located, plan, saved, reader.digest, batches, source, say)
    with beside.new(workdir) as path, aside.folder(path):
      given = operate(layout.numbered(_floats(saved)), located, calibration)
      pair = isinstance(given, tuple) and [isinstance(part, dict) for part in given] == [True, True]
      params, changes = checked.returned(operate, given, pair, '(params, changes), two dicts')
      changes |= learning(cfg, run, reader.step)
      new_cfg, fewer = _laid_out(run, sparse.changed(cfg, changes).lock(), mesh)
      facts = dict(
          parameters=[modules.num_weights(p.model(*(p.shapes[part] for part in streamed.MODEL)))
                      for p in (plan, fewer)],
          bytes=[_bytes(p.shapes) for p in (plan, fewer)], changes=changes, family=records.family(run),
          calibration_seconds=calibration.seconds())
      origin = starts.origin(*method, [starts.parent(run, reader.step)], facts)
      starts.inherit(path, run)
      streamed.write(path / 'checkpoints', new_cfg, fewer, params, source.position(),
                     starts.meta(new_cfg, reader.meta['vocab']))
      keep(path)
      line = _evaluated(path, new_cfg, fewer, mesh, source, say) if evaluate else {}
      starts.claim(path, new_cfg, origin, line=line, say=say)
  return facts


def _evaluated(path, cfg, plan, mesh, source, say):
  """Dict 'eval/...' of the checkpoint that begins run directory `path`."""
  state, opened, sums = _restore(path, cfg, mesh, 0, say), source(), evaluation.make(plan, cfg.eval.draws)
  values = evaluation.run(cfg, plan, sums, state, opened.info(), opened=opened)
  say(f'before training: {evaluation.describe(plan.target, values)}')
  return values


def _bytes(shapes):
  """The bytes of all numbers that a model holds."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_model(shapes)))


def _laid_out(run, cfg, mesh):
  """(cfg complete, its Blueprint) of the configuration of what a surgery makes of `run`, checked."""
  check.counts(cfg)
  plan = states.blueprint(record.read(run).located(cfg), mesh)
  check.forward(cfg, plan)
  return cfg, plan


def _distilling(distil):
  """The function (cfg, run, step) -> changes that let `run` be the teacher, by a target's text or ''."""
  if not distil:
    return lambda cfg, run, step: {}
  name, fields = lookup.spelled('target', distil)
  if not {'inner', 'run', 'step'} <= lookup.fields('target', name).keys():
    raise errors.UserError(f'--distil {distil}: {name} is no target with a teacher; nearest: teacher')
  return lambda cfg, run, step: dict(loss=dict(
      name=name, run=str(pathlib.Path(run).absolute()), step=step, inner=cfg.loss.to_dict()) | fields)


def _described(kind, surgery):
  """(name, all fields) of the surgery of a kind that a text names."""
  name, named = lookup.spelled(kind, surgery)
  return name, {field: option.default for field, option in lookup.options(kind, name).items()} | named


class Source:
  """The data of a run, opened when asked for: some surgeries need no data, and some runs have none."""

  def __init__(self, cfg, run, plan, say):
    self._cfg, self._run, self._plan, self._say = cfg, run, plan, say
    self._opened = None

  def __call__(self, cfg=None):
    """Returns the opened data; raises UserError if there are none, or they are of another vocabulary.

    cfg: the configuration of other data, for the same model; None = the run's own.
    """
    if cfg is not None:
      return Source(cfg, self._run, self._plan, self._say)()
    if self._opened is None:
      if self._cfg.data.get('vocab') == '':
        raise errors.UserError(f'data.vocab of {self._run} is empty, and the surgery looks at data; nearest: '
                               '--config.data.vocab=FILE --config.data.files=FILE')
      self._opened = pipeline.source(self._cfg, self._run)
      check.vocabulary(self._cfg, self._plan, self._opened.info()['vocab'])
      for line in self._opened.notes:
        self._say(line)
    return self._opened

  def position(self) -> dict:
    """Returns the position of the data at their beginning; none, of an import whose data nobody asked for."""
    if self._opened is None and records.imported(self._run):
      return dict(step=0, data=None)
    return pipeline.beginning(self._cfg, self())


def _restore(run, own_cfg, mesh, step, say):
  """The training state of a checkpoint of `run`, whose configuration was `own_cfg`."""
  plan = _own_plan(run, own_cfg, mesh)
  with contextlib.closing(checkpoint.Checkpoints(f'{run}/checkpoints', keep=None, read_only=True)) as saved:
    return saved.restore(plan.shapes, lambda meta: None, say, step)[1]


def _own_plan(run, own_cfg, mesh):
  """The Blueprint of a run as it was: what trains, and how, may be another thing in the new run."""
  return states.blueprint(record.read(run).located(own_cfg), mesh)


def _reader(run, shapes, step, say):
  """The Reader of the newest checkpoint of `run`, or of `step`, whose model is what was saved.

  A damaged checkpoint is passed by, where another one is before it and no step was asked for.
  """
  folder = pathlib.Path(run) / 'checkpoints'
  steps = stored.present(folder, step)
  for at in [step] if step is not None else reversed(steps):
    before = [other for other in steps if other < at]
    try:
      reader = stored.Reader(folder, at)
      checkpoint.check_shapes(reader.inventory, shapes)
      for path, _ in jax.tree.leaves_with_path({part: shapes[part] for part in streamed.MODEL}):
        reader.check(states.evaluated(tuple(entry.key for entry in path), reader.inventory))
      return reader
    except errors.UserError as error:
      if step is not None or not before:
        raise
      say(f'{error}; falling back to step {before[-1]}')
  raise AssertionError


def _saved(reader, shapes):
  """Dict part -> tree of the Deferreds of all numbers that a model holds, as evaluation reads them.

  An array whose chunks hold several of the parts that are asked for is read once, and put aside.
  """
  whole = {}

  def read(leaf, index):
    if reader.divided(leaf, index):
      return reader.part(leaf, index)
    if leaf not in whole:
      store = reader.array(leaf)
      whole[leaf] = aside.put_parts(store.shape, store.dtype.numpy_dtype, reader.parts(leaf))
    return aside.part(whole[leaf], index)

  def deferred(path, shape):
    leaf = states.evaluated(tuple(entry.key for entry in path), reader.inventory)
    return aside.Deferred(shape.shape, shape.dtype, lambda index: read(leaf, index))
  return jax.tree.map_with_path(deferred, {part: shapes[part] for part in streamed.MODEL})


def _floats(saved):
  """The nested dict of all numbers of a model, as Deferreds, of its parts `saved`; floats in float32."""
  wide = lambda x: x.of(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
  return layout.together(*(jax.tree.map(wide, saved[part]) for part in streamed.MODEL))


def _model(shapes):
  """The nested dict of all numbers that a model holds: parameters and state of routers."""
  return layout.together(*(shapes[part] for part in streamed.MODEL))
