"""Compressed runs: at keep=1.0 any surgery leaves the logits, what is written is a run, and its ancestry is said."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.answer import score
from stmoe.data import batches as pipeline
from stmoe.derive import compress
from stmoe.runs import directory as rundir
from stmoe.runs import lineage
from stmoe.runs import records
from stmoe.train import checkpoint
from stmoe.train import state as states
from tests.derive import drawn
from tests.train import tiny_run

ONE = jax.devices()[:1]
TOP2 = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None), second_policy='all')


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A run of a dense and two sparse layers, one of them inside of another, with a step done."""
  corpus = tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))
  sparse = dict(layer='moe', executor='gather', group_size=None, router=TOP2,
                experts=dict(name='mlp', d_ff=12, activation='gelu', init_scale=1.0))
  inner = {key: value for key, value in sparse.items() if key != 'layer'} | dict(name='moe')
  blocks = dict(d=dict(layer='dense', d_ff=16), m=sparse,
                s=dict(layer='shared', d_ff=8, inner=inner | dict(experts=dict(name='glu', d_ff=8))))
  cfg = tiny_run.config(corpus, **{'blocks': blocks, 'model.layers': (('dm', 1), ('s', 1))})
  return drawn.write(tmp_path_factory.mktemp('start') / 'run', cfg, 4, ONE)


def model(path):
  """Returns (config, model) of the newest checkpoint of a run, on one device."""
  cfg = rundir.opened(path)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)
    _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
    saved.close()
  return cfg, plan.model(state['params'], state['router_state'])


def logits(path):
  cfg, found = model(path)
  batch = next(iter(pipeline.eval_batches(cfg)))
  return np.asarray(jax.jit(lambda m, b: m(b)[0])(found, batch))


def made(start, surgery, path, overrides=(), **options):
  facts = compress.compress(start, surgery, path, overrides, batches=2, devices=ONE, say=lambda line: None,
                            **options)
  return facts, path


@pytest.fixture(scope='module')
def before(start):
  return logits(start)


@pytest.mark.parametrize('name', lookup.available('surgery'))
def test_what_keeps_all_leaves_the_logits(start, before, name, tmp_path):
  made(start, f'{name}:keep=1.0', tmp_path / 'run')
  np.testing.assert_allclose(logits(tmp_path / 'run'), before, rtol=1e-5, atol=1e-6 * np.abs(before).max())
