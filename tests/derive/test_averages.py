"""Averages of parameters: what reads a trained model, or makes a run of one, has the model of evaluation."""

import json
import pathlib

import jax
import numpy as np
import pytest

from stmoe import lookup
from stmoe.answer import adapters
from stmoe.answer import interactive
from stmoe.answer import score
from stmoe.checkpoints import stored
from stmoe.data import batches as pipeline
from stmoe.derive import compress
from stmoe.derive import convert
from stmoe.derive import finetune
from stmoe.derive.adapter import loaded
from stmoe.derive.adapter import saved
from stmoe.derive.conversion import exporting
from stmoe.interop import tensors
from stmoe.runs import directory as rundir
from stmoe.train import opened
from stmoe.train import state as states
from tests.derive import drawn
from tests.train import tiny_run

ONE = jax.devices()[:1]
MIXTRAL = pathlib.Path(__file__).parents[1] / 'data' / 'checkpoints' / 'mixtral_window_pad'
PAIR = dict(inputs='a', targets='yes', choices=['yes', 'no'])
AVERAGES = 'opt_state/averages/'


@pytest.fixture(scope='module')
def start(corpus, tmp_path_factory):
  """A run whose averages are other numbers than its parameters."""
  cfg = tiny_run.config(corpus, **{'optimizer.average': 0.9, 'eval.batches': 1})
  return drawn.write(tmp_path_factory.mktemp('start') / 'run', cfg, 4, ONE)


def numbers(run):
  """Returns dict path -> array of the newest checkpoint of a run."""
  folder = run / 'checkpoints'
  reader = stored.Reader(folder, max(stored.steps(folder)))
  return {name: stored.read(reader.array(tuple(name.split('/'))), ...) for name in reader.inventory
          if name.startswith(('params/', AVERAGES))}


def evaluated(run):
  """Returns dict path of a parameter -> what evaluation of a run reads for it."""
  return {name.removeprefix(AVERAGES): x for name, x in numbers(run).items() if name.startswith(AVERAGES)}


def same(found, wanted):
  assert found.keys() == wanted.keys() and all((found[name] == wanted[name]).all() for name in wanted)


def test_an_opened_model_has_them(start):
  model, _, _ = interactive.opened(start)
  cfg = rundir.opened(start)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    _, state, *_ = opened.restore(states.blueprint(cfg, mesh), start, pipeline.vocabulary(cfg), print)
  table = evaluated(start)['embed/table']
  assert (np.asarray(model.embed.table[...]) == table).all()
  assert (numbers(start)['params/embed/table'] != table).any()
  assert (np.asarray(state['params']['embed']['table']) == table).all()


def test_a_compressed_run_begins_with_them(start, tmp_path):
  compress.compress(start, 'prune:keep=1.0,by=magnitude', tmp_path / 'new', devices=ONE,
                    say=lambda line: None)
  same(evaluated(tmp_path / 'new'), evaluated(start))
  found = numbers(tmp_path / 'new')
  assert all((found[f'params/{name}'] == x).all() for name, x in evaluated(start).items())
  _, loss = score.score(rundir.load(start), start, lambda line: None, devices=ONE)
  _, after = score.score(rundir.load(tmp_path / 'new'), tmp_path / 'new', lambda line: None, devices=ONE)
  assert after['eval/loss'] == pytest.approx(loss['eval/loss'])


@pytest.mark.parametrize('slots', ['fresh', 'keep'])
def test_a_fine_tuned_run_begins_with_them(start, tmp_path, slots):
  (tmp_path / 'pairs.jsonl').write_text((json.dumps(PAIR) + '\n') * 40)
  cfg, _ = finetune.prepare('finetune/jsonl', [
      f'--config.data.jsonl={tmp_path / "pairs.jsonl"}', f'--config.finetune.optimizer={slots}',
      f'--config.data.cache_dir={tmp_path}'], start)
  with cfg.unlocked(), cfg.ignore_type():
    cfg.optimizer = rundir.load(start).optimizer
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    state, record = finetune._load(start, cfg, plan, pipeline.vocabulary(cfg), None)
  named = lambda tree: {'/'.join(str(entry.key) for entry in path): np.asarray(x)
                        for path, x in jax.tree.leaves_with_path(tree)}
  same(named(plan.evaluated(state)), evaluated(start))
  kept = {name.removeprefix('params/'): x for name, x in numbers(start).items() if name.startswith('params/')}
  same(named(state['params']), kept if slots == 'keep' else evaluated(start))
  assert record['new'] == []


@pytest.mark.slow
def test_an_adapter_stands_beside_them(start, tmp_path):
  (tmp_path / 'pairs.jsonl').write_text((json.dumps(PAIR) + '\n') * 40)
  cfg, name = finetune.prepare('finetune/jsonl', [
      f'--config.{text}' for text in (
          f'data.jsonl={tmp_path / "pairs.jsonl"}', f'data.cache_dir={tmp_path}', 'data.inputs_length=8',
          'data.targets_length=8', 'train.steps=1', 'train.batch_size=4', 'eval.batch_size=4',
          'eval.batches=1', 'eval.every=1', 'eval.methods=', 'checkpoint.every=1',
          'finetune.adapter=lora:rank=2')], start)
  quiet = lambda line: None
  assert finetune.finetune(start, cfg, tmp_path / 'run', name, devices=ONE, say=quiet) == 0
  saved.write(tmp_path / 'run', tmp_path / 'alone')
  loaded.read(tmp_path / 'alone', start, tmp_path / 'again', devices=ONE, say=quiet)
  params = lambda run: {name: x for name, x in numbers(run).items() if name.startswith('params/')}
  same(params(tmp_path / 'again'), params(tmp_path / 'run'))


def test_a_base_answers_with_those_of_an_adapter(start, corpus, tmp_path, monkeypatch):
  adapter = dict(name='lora', targets='attention', rank=2, alpha=4.0)
  cfg = tiny_run.config(corpus, **{'optimizer.average': 0.9, 'eval.batches': 1, 'model.adapter': adapter,
                                   'train.trainable': 'adapter'})
  run = drawn.write(tmp_path / 'run', cfg, 4, ONE)
  monkeypatch.setattr(saved, 'digest', lambda inventory: 'of the same base')
  part = adapters.Base(start)._opened(run).part
  found = {'/'.join(str(entry.key) for entry in path): np.asarray(x)
           for path, x in jax.tree.leaves_with_path(part)}
  same(found, evaluated(run))            # only the adapter has averages, as only the adapter trains


def test_files_have_them(tmp_path):
  convert.read(MIXTRAL, tmp_path / 'run', ['--config.optimizer.name=adamw', '--config.optimizer.average=0.9'],
               say=lambda line: None)
  found = numbers(tmp_path / 'run')
  same({f'params/{name}': x for name, x in evaluated(tmp_path / 'run').items()},
       {name: x for name, x in found.items() if name.startswith('params/')})
  reader = exporting.reader_of(tmp_path / 'run', None)
  places = exporting.placed(reader, lookup.module('family', 'mixtral'), rundir.load(tmp_path / 'run'))
  assert {place.leaf[:2] for place in places} == {('opt_state', 'averages')}
  convert.write(tmp_path / 'run', tmp_path / 'out')
  before, after = tensors.tensors(MIXTRAL), tensors.tensors(tmp_path / 'out')
  same({name: np.asarray(tensor.read()) for name, tensor in after.items()},
       {name: np.asarray(tensor.read()) for name, tensor in before.items()})
