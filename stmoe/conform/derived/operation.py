"""What every change of a trained model must do: numbers fit the new configuration, the same each time."""

import functools
import pathlib
import tempfile
import typing

from flax import nnx
import jax
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.conform import generic
from stmoe.conform.data import written
from stmoe.core import checked
from stmoe.data import batches as pipeline
from stmoe.derive.calibration import calibrate
from stmoe.parts import adapting
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.surgery import sparse
from stmoe.train import state as states

PARTS, BATCHES = ('params', 'router_state'), 2                       # batches: of a calibration
# Experiments with overrides: of four blocks two are sparse; all are dense; and have adapters.
SPARSE = ('lm/quickstart:smoke,method=st_moe,experts=4', 'blocks.m.experts.d_ff=8', 'blocks.m.group_size=64',
          'blocks.m.executor=einsum')
DENSE = 'lm/quickstart:smoke,method=dense', 'blocks.m.d_ff=8'
ADAPTED = *DENSE, 'model.adapter.name=lora', 'model.adapter.rank=2'


class Model(typing.NamedTuple):
  """A model: its configuration, its Blueprint, and its numbers in one nested dict, numbered (`layout`)."""
  cfg: ml_collections.ConfigDict
  plan: typing.Any
  arrays: dict

  def shapes(self) -> dict[tuple, str]:
    """Returns dict path -> 'float32[2,3]' of the arrays that the configuration means, numbered."""
    return told(layout.numbered(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), _whole(self.plan))))

  def logits(self) -> np.ndarray:
    """Returns what the model says of a batch of its data, f32[B,T,V]."""
    parts, batch = _parts(self.plan, self.arrays), pipeline.eval_batches(self.cfg)[0]
    with states.on_mesh(self.cfg.mesh, jax.devices()[:1]):
      return np.asarray(_said(self.plan.graphdef, parts, batch))


def numbers_fit(kind: str, models: tuple, name: str, **fields) -> None:
  """It returns the arrays of the new configuration's model, and what this model says is finite."""
  _, after = _changed(kind, models, name, **fields)
  found, wanted = told(after.arrays), after.shapes()
  for path in sorted(found.keys() | wanted.keys(), key=str):
    assert found.get(path) == wanted.get(path), (
        f'{"/".join(map(str, path))} is {found.get(path, "not there")}; wanted by the new configuration: '
        f'{wanted.get(path, "no such array")}')
  assert np.all(np.isfinite(after.logits())), 'the new model says what is no finite number'


def the_same_each_time(kind: str, models: tuple, name: str, **fields) -> None:
  """Called twice it returns the same, and what it was given stays as it is."""
  before, after = _changed(kind, models, name, **fields)
  [words] = [words for words in models if model(*words) is before]
  given, cfg = jax.tree.map(_deferred, before.arrays), before.cfg.to_dict()
  arrays, changes = _bound(kind, name, fields)(given, before.cfg, calibration(*words))
  _equal(given, before.arrays, 'which was given, is changed')
  assert before.cfg.to_dict() == cfg, 'the configuration that was given is changed'
  _equal(arrays, after.arrays, 'is another in a second call')
  again = sparse.changed(before.cfg, changes).to_dict()
  assert again == after.cfg.to_dict(), 'the changes are others in a second call'


def keeping_all_changes_nothing(kind: str, models: tuple, name: str, **fields) -> None:
  """With keep=1.0, where it keeps a share, the model says what it said before."""
  if 'keep' in lookup.options(kind, name):
    before, after = _changed(kind, models, name, **fields | dict(keep=1.0))
    np.testing.assert_allclose(after.logits(), before.logits(), rtol=1e-4, atol=1e-4,
                               err_msg='with keep=1.0 the model says something else than before')


def checks(kind: str, *models: tuple) -> typing.Iterator[typing.Callable[..., None]]:
  """Yields the checks above for the file of `kind`; of `models` the first is changed that it takes."""
  for rule in (numbers_fit, the_same_each_time, keeping_all_changes_nothing):
    yield generic.check_of(f'{__package__}.{kind}', rule, functools.partial(rule, kind, models))


def plan(cfg: ml_collections.ConfigDict) -> states.Blueprint:
  """Returns the Blueprint of a configuration on one device."""
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    return states.blueprint(cfg, mesh)


def told(arrays: dict) -> dict[tuple, str]:
  """Returns dict path -> 'float32[2,3]' of a nested dict of arrays."""
  return {_keys(path): checked.told(array) for path, array in jax.tree.leaves_with_path(arrays)}


@generic.cached
def model(name: str, *overrides: str) -> Model:
  """Returns a small Model of random numbers, of an experiment of language models with overrides."""
  cfg = experiment.load(name, [
      'model.d_model=8', 'model.num_heads=2', 'model.head_dim=4', 'model.vocab_size=259', 'blocks.d.d_ff=8',
      'data.task=text', f'data.files={",".join(written.texts())}', 'data.documents=line',
      'data.vocab=bytes', 'data.length=16', f'data.cache_dir={written.folder()}', 'train.batch_size=4',
      'eval.batch_size=4', 'train.steps=1000', *overrides])[0]
  of, rng = plan(cfg), np.random.default_rng(0)
  number = lambda s: (rng.normal(0, 0.5 * (s.dtype == np.float32), s.shape)).astype(s.dtype)
  return Model(cfg, of, layout.numbered(jax.tree.map(number, _whole(of))))


@generic.cached
def calibration(*words: str) -> calibrate.Calibration:
  """Returns what calibrates a `model`, on its own data."""
  of, run = model(*words), pathlib.Path(tempfile.mkdtemp(dir=written.folder()))
  arrays = dict(zip(PARTS, _parts(of.plan, of.arrays)))
  source = lambda cfg=None: pipeline.source(of.cfg if cfg is None else cfg)
  return calibrate.Calibration(run, of.cfg, of.plan, arrays, '', BATCHES, source, lambda line: None)


@generic.cached
def _changed(kind, models, name, **fields):
  """(Model before, Model after) of the first of `models` that a surgery takes."""
  refused = []
  for words in models:
    before = model(*words)
    try:
      arrays, changes = _bound(kind, name, fields)(
          jax.tree.map(_deferred, before.arrays), before.cfg, calibration(*words))
    except errors.UserError as error:
      refused.append(error)
      continue
    cfg = sparse.changed(before.cfg, changes).lock()
    return before, Model(cfg, plan(cfg), arrays)
  raise refused[0]


def _bound(kind, name, fields):
  """The function of a surgery with its fields; AssertionError where it does not return two dicts."""
  operate = functools.partial(getattr(lookup.module(kind, name), lookup.FUNCTIONS[kind]), **fields)

  def call(params, cfg, calibration):
    with states.on_mesh(cfg.mesh, jax.devices()[:1]):
      answer = operate(params, cfg, calibration)
    assert isinstance(answer, tuple) and [isinstance(part, dict) for part in answer] == [True, True], (
        f'it returned {checked.told(answer)}; wanted: (params, changes), two dicts')
    return answer
  return call


def _whole(plan):
  """The nested dict of shapes of all numbers that a model holds."""
  return layout.together(*(plan.shapes[part] for part in PARTS))


def _parts(plan, arrays):
  """The trees of PARTS with the arrays of a nested dict, numbered."""
  placed = layout.placed(arrays, _whole(plan))
  return [jax.tree.map_with_path(lambda path, _: layout.at(placed, _keys(path)), plan.shapes[part])
          for part in PARTS]


def _deferred(array):
  """An array as a surgery is given it: read when it is asked for."""
  return aside.Deferred(array.shape, array.dtype, lambda index: np.array(np.asarray(array)[index]))


def _keys(path):
  return tuple(entry.key for entry in path)


def _equal(arrays, others, said):
  """Raises AssertionError unless two nested dicts hold the same; `said` is what is wrong with an array."""
  found, wanted = ({_keys(path): np.asarray(array) for path, array in jax.tree.leaves_with_path(tree)}
                   for tree in (arrays, others))
  for path in found.keys() | wanted.keys():
    same = path in found and path in wanted and np.array_equal(found[path], wanted[path])
    assert same, f'{"/".join(map(str, path))} {said}'


@functools.partial(jax.jit, static_argnums=0)
def _said(graphdef, parts, batch):
  return adapting.view(nnx.merge(graphdef, *parts))(batch)[0]
