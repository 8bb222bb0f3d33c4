"""Calibration: what a pass of a run over its own training data says of routers and experts.

`items` lists what can be collected of every layer. Items are sums over the tokens of the pass, which is an
evaluation: without noise, at its capacity. Batches add up on the host in float64. So memory does not
grow with their number, and the sums are the same in batches of any size and on any devices. The sums are kept
in the folder `calibration` of the run, sealed as caches of data are. Their key is made of checkpoint, data
and length. Some items are no sums: they are maxima over tokens, or the first tokens.

SLOPES is an item of parameters, not of layers: the path 'decoder/layers/1/layer/experts/wi' is its key. It is
the sum of theta dL/dtheta over all axes of a parameter but experts, hidden units and heads (AXES). L is the
run's own loss, summed over tokens. For a run that is distilled, L is the loss of its distillation.

A model larger than memory is read layer by layer (see `piecewise`), but for SLOPES, whose gradient needs the
whole model.
"""

import copy
import hashlib
import json
import math
import pathlib
import time
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import files
from stmoe import plugins
from stmoe import targets
from stmoe.data import bar
from stmoe.data import batches as pipeline
from stmoe.data import store
from stmoe.derive.calibration import items
from stmoe.derive.calibration import piecewise
from stmoe.derive.calibration import watch
from stmoe.hosts import distributed
from stmoe.surgery import layout
from stmoe.train import beside
from stmoe.train import check
from stmoe.train import state as states

FOLDER, LARGEST = 'calibration', 1 << 40
VERSION = 2                              # of SLOPES: version 1 had, of some models, one layer's alone
SLOPES, AXES = 'slopes', ('layers', 'expert', 'expert_mlp', 'joined_kv')


class Pass(typing.NamedTuple):
  """What a pass collected: sums, dict item -> dict layer -> f64[...], and its seconds of processors."""
  sums: dict
  seconds: float


class Calibration:
  """Collects when it is called: calibration('load', ...) -> dict layer or path -> dict name -> f64[...].

  Args:
    run:     directory of the run, in which results are kept.
    cfg:     the run's configuration; the first `batches` training batches of its data are used.
    plan:    the Blueprint.
    arrays:  dict(params, router_state): trees of arrays, or of `aside.Deferred`, which are read when a pass
      needs them, layer by layer where they are many (see `piecewise`); SLOPES needs them all at once.
    digest:  of the checkpoint that they are of.
    source:  gives the opened data when called without arguments, and of another configuration when called
      with that.
    say:     called with lines of text.
  """

  def __init__(self, run, cfg, plan, arrays, digest, batches, source, say):
    self._folder, self._cfg, self._plan, self._arrays = pathlib.Path(run) / FOLDER, cfg, plan, arrays
    self._digest, self._batches, self._source, self._say = digest, batches, source, say
    self._passes = {}                    # (key, items) of a pass -> its seconds

  def seconds(self) -> float:
    """Returns the seconds of processors that all passes took whose sums were asked for, kept ones too."""
    return sum(self._passes.values())

  def __call__(self, *names: str, data: dict | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Returns dict layer -> dict name -> f64[...]; runs over the data for names that are not kept yet.

    data: dict of fields of section `data` with other values: these data are looked at instead.
    """
    if data is not None:
      return self._of(data)(*names)
    position = pipeline.beginning(self._cfg, self._source())
    paths = {name: store.named(self._folder, name, self.key(position, name)) for name in names}
    absent = [name for name, path in paths.items() if not path.is_dir()]
    fresh = self._collected(absent) if absent else Pass({}, 0.0)
    by_layer: dict[str, dict] = {}
    for name, path in paths.items():
      facts = store.kept(path, lambda folder, name=name: _write(
          folder, name, fresh if name in fresh.sums else self._collected([name])))
      self._passes[self.key(position), *facts.get('items', ())] = facts.get('seconds', 0.0)
      for layer, value in files.read_arrays(path / 'sums.npz', LARGEST).items():
        by_layer.setdefault(layer, {})[name] = value
    return by_layer

  def _of(self, data):
    """The Calibration of the same model on other data."""
    other, cfg = copy.copy(self), copy.deepcopy(self._cfg)
    with cfg.unlocked():
      cfg.data.update(data)
    other._cfg, other._source = cfg, lambda: self._source(cfg)
    return other

  def key(self, position: dict, name: str = '') -> str:
    """Returns the digest of what item `name` depends on; `position` is that of the data's beginning."""
    c = self._cfg.to_dict()
    content = [self._digest, position, self._batches, c['seed'], c['train']['batch_size'], c['model'],
               c['blocks'], {key: value for key, value in c['data'].items() if key != 'cache_dir'}]
    content += [c['loss'], self._completed().meta, VERSION] if name == SLOPES else []
    content += [[plugin.name, plugin.sha256] for plugin in plugins.known()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

  def _completed(self):
    """What completes batches by the outputs of another run that the loss wants, see `beside.opened`."""
    return beside.opened(self._plan, self._source().info()['vocab'])

  def _collected(self, names):
    """The Pass over the data for items `names`."""
    cfg, plan, began = self._cfg, self._plan, time.process_time()
    whole = SLOPES in names
    shard = distributed.shard(plan.mesh, cfg.train.batch_size)
    data = pipeline.train_iterator(cfg, *shard, self._source())
    complete, key = self._completed() if whole else beside.Alone(), states.fold(cfg.seed, 'calibrate')
    self._say(f'calibrating on {self._batches} batches: {", ".join(names)}')
    batches = ((complete(check.place(next(data), plan.mesh)), jax.random.fold_in(key, number))
               for number in range(self._batches))
    sums = lambda arrays, batch, key: _sums(plan, *arrays, batch, key, names)
    everywhere, total = jax.jit(lambda x: x, out_shardings=distributed.everywhere(plan.mesh)), None
    arrays, like = ([tree['params'], tree['router_state']] for tree in (self._arrays, plan.shapes))
    with bar.task('calibrating', self._batches, 'batches') as advance:
      for part in piecewise.each(sums, arrays, like, batches, most=math.inf if whole else None,
                                 advance=advance):
        part = jax.tree.map(np.float64, jax.device_get(everywhere(part)))
        total = part if total is None else {
            name: jax.tree.map(items.reduction(name).batches, total[name], part[name]) for name in part}
    data.close()
    return Pass(total, time.process_time() - began)


def _sums(plan, params, routers, batch, key, names):
  """Dict name -> dict layer -> f32[...] of one batch."""
  of_layers = [name for name in names if name != SLOPES]
  slopes = {SLOPES: _slopes(plan, params, routers, batch, key)} if SLOPES in names else {}
  if not of_layers:
    return slopes
  _, aux = watch.watched(plan.model(params, routers), of_layers)(batch, key=key, train=False)
  records = {name: {layer: items.reduction(name).groups(a.records[name])
                    for layer, a in aux.items() if name in a.records} for name in of_layers}
  return slopes | {name: {layer: a.load for layer, a in aux.items()} if name == 'load' else records[name]
                   for name in of_layers}


def _slopes(plan, params, routers, batch, key):
  """Dict path -> f32[...] of one batch: see SLOPES.

  theta dL/dtheta is the derivative to a gate of 1 that multiplies theta. A gate is common to all that is
  summed, so no gradient of all parameters is kept.
  """
  names = axes.names_of(nnx.state(plan.model(plan.shapes['params'], plan.shapes['router_state']), nnx.Param))
  keeps = lambda names: AXES if {*names} & {'expert_mlp', 'joined_kv'} else AXES[:1]
  cut = lambda names, a: [n if name in keeps(names) else 1 for n, name in zip(a.shape, names)]
  gates = jax.tree.map(lambda names, a: jnp.ones(cut(names, a)), names, params, is_leaf=axes.is_names)

  def loss(gates):
    model = plan.model(jax.tree.map(jnp.multiply, params, gates), routers)
    outputs, _ = targets.predict(plan.target, model, batch, key=key, train=False)
    if plan.target.passes > 1:
      outputs = jax.tree.map(lambda x: jnp.stack([x] * plan.target.passes), outputs)
    counts = jax.tree.map(jnp.ones_like, targets.counts(plan.target, model, batch))
    return plan.target.loss(outputs, batch, counts)[0]
  slopes, found = layout.numbered(jax.grad(loss)(gates)), {}
  for path, slope in jax.tree.leaves_with_path(slopes):
    if slope.size > 1:
      found['/'.join(str(entry.key) for entry in path)] = slope.squeeze()
  return found


def _write(folder, name, fresh):
  layers = fresh.sums[name]
  np.savez(folder / 'sums.npz', **layers)
  return dict(layers=sorted(layers), items=sorted(fresh.sums), seconds=fresh.seconds)
