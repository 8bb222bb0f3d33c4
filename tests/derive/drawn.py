"""Run directories with a checkpoint of random numbers, which takes no training; surgeries in memory."""

import jax
import numpy as np

from stmoe import lookup
from stmoe.checkpoints import checkpoint
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.derive.calibration import calibrate
from stmoe.derive import compress
from stmoe.runs import directory as rundir
from stmoe.surgery import layout
from stmoe.surgery import sparse
from stmoe.train import check
from stmoe.train import state as states


def write(path, cfg, step, devices):
  """Writes run directory `path` of `cfg` as after `step` steps; returns `path`."""
  rng = np.random.default_rng(0)
  with states.on_mesh(cfg.mesh, devices) as mesh:
    plan, source = states.blueprint(cfg, mesh), pipeline.source(cfg)
    data = pipeline.train_iterator(cfg, opened=source)
  number = lambda s: np.float32(rng.uniform(0, 0.4, s.shape)) if s.shape else np.int32(step)
  state = jax.tree.map(number, {part: plan.shapes[part] for part in ('params', 'opt_state', 'step')})
  state |= dict(router_state={}, key=states.fold(0, 'train'), counts=dict(
      tokens=np.uint32([step * 8 * 32, 0]), skipped=np.int32(0), bad=np.int32(0)))
  rundir.claim(path, cfg)
  saved = checkpoint.Checkpoints(path / 'checkpoints')
  meta = dict(config=rundir.identity(cfg), vocab=source.info()['vocab'].digest, seconds=1.0)
  saved.save(step, jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, plan.shapes),
             data.get_state() | dict(step=step), meta)
  saved.close()
  data.close()
  record.write(path, cfg, source, check.files(plan))
  return path


class Opened:
  """A run in memory: what surgeries make of `params`, and the logits of a batch."""

  def __init__(self, run, devices):
    self.run, self.devices, self.cfg = run, devices, rundir.opened(run)
    self.batch, say = next(iter(pipeline.eval_batches(self.cfg))), lambda line: None
    with states.on_mesh(self.cfg.mesh, devices) as mesh:
      plan = states.blueprint(self.cfg, mesh)
      state = compress._restore(run, self.cfg, mesh, None, say)
    source = compress.Source(self.cfg, run, plan, say)
    self.params = layout.numbered(compress._model(state))
    self.calibration = calibrate.Calibration(run, self.cfg, plan, state, 'digest', 2, source, say)
    self.before = self.logits(self.params, {})

  def made(self, kind, text):
    """Returns (parameters, changes) of the surgery of `kind` that a text names."""
    with states.on_mesh(self.cfg.mesh, self.devices):
      return lookup.bound(kind, text)(self.params, self.cfg, self.calibration)

  def logits(self, params, changes):
    """Returns the logits of parameters in the model of `changes`."""
    with states.on_mesh(self.cfg.mesh, self.devices) as mesh:
      cfg, plan = compress._laid_out(self.run, sparse.changed(self.cfg, changes).lock(), mesh)
      whole = layout.placed(params, compress._model(plan.shapes))
      place = lambda path, shape: jax.device_put(layout.at(whole, tuple(k.key for k in path)).astype(
          shape.dtype), shape.sharding)
      model = plan.model(*(jax.tree.map_with_path(place, plan.shapes[part])
                           for part in ('params', 'router_state')))
      return np.asarray(jax.jit(lambda m, b: m(b)[0])(model, self.batch))
