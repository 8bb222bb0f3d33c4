"""Factorised runs: sparse runs of dense ones, which compute the same where nothing is left out."""

import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.derive.calibration import watch
from stmoe.derive import compress
from stmoe.layers import dense
from stmoe.runs import directory as rundir
from stmoe.train import loop
from stmoe.train import state as states
from tests.derive import drawn
from tests.derive import test_compress
from tests.layers import calls
from tests.train import tiny_run

ONE = jax.devices()[:1]
# With these fields a factorisation keeps the function.
SAME = dict(dynamic_dino='', emoe='num_blocks=4,k=4', factor_llm='num_experts=4,k=4',
            read_me='share=1.0,width=8,heads=2', union_of_experts='share=1.0')


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A dense run of two letters, gated and with biases."""
  corpus = tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))
  blocks = dict(d=dict(layer='dense', d_ff=16, activation='gelu', use_bias=True),
                g=dict(layer='dense', d_ff=8, activation='silu', gated=True))
  cfg = tiny_run.config(corpus, **{'blocks': blocks, 'model.layers': (('dg', 1), ('g', 1)), 'losses': {}})
  return drawn.write(tmp_path_factory.mktemp('start') / 'run', cfg, 4, ONE)


def made(start, text, path, **options):
  return compress.compress(start, text, path, kind='factorisation', batches=2, devices=ONE,
                           say=lambda line: None, **options)


@pytest.fixture(scope='module')
def opened(start):
  return drawn.Opened(start, ONE)


def assert_kept(after, before):
  """Asserts equal logits, up to round-off."""
  assert np.ptp(before) > 0.1
  np.testing.assert_allclose(after, before, rtol=1e-5, atol=3e-6 * np.abs(before).max())


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'factor_llm'))
    for name in lookup.available('factorisation')])
def test_what_leaves_nothing_out_leaves_the_logits(opened, name):
  assert_kept(opened.logits(*opened.made('factorisation', f'{name}:{SAME[name]}')), opened.before)


@pytest.mark.slow
@pytest.mark.parametrize('name', lookup.available('factorisation'))
def test_a_run_that_leaves_nothing_out_has_the_same_logits(start, name, tmp_path):
  made(start, f'{name}:{SAME[name]}', tmp_path / 'run')
  assert_kept(test_compress.logits(tmp_path / 'run'), test_compress.logits(start))


def test_nothing_is_written_where_it_cannot_be(start, tmp_path):
  def refused(text, run=start):
    with pytest.raises(errors.UserError) as caught:
      made(run, text, tmp_path / 'none')
    assert '\n' not in str(caught.value) and not (tmp_path / 'none').exists()
    return str(caught.value)
  assert "letters='x': dense layers are in the blocks d, g; nearest: dg" in refused('factor_llm:letters=x')
  assert 'num_experts=3 does not divide the 16 hidden units of a layer; nearest: num_experts=2' in refused(
      'factor_llm:num_experts=3')
  assert 'no factorisation is called' in refused('prune')
  made(start, 'factor_llm:prior=none,letters=g', tmp_path / 'run')
  assert 'the model is sparse, decoder_01 has experts; nearest' in refused('factor_llm', tmp_path / 'run')
  assert rundir.load(tmp_path / 'run').blocks.d.layer == 'dense'


def test_hidden_units_of_real_tokens_are_added_up():
  layer, x = dense.Dense(6, d_ff=4, rngs=nnx.Rngs(0)), calls.inputs(6)
  ctx = calls.context(mask=jnp.arange(calls.T) < jnp.array([[4], [1]]))
  y, aux, _ = watch.Units(layer, ('unit_sizes', 'unit_tokens'))(x, ctx, {})
  real = jnp.concatenate([x[0, :4], x[1, :1]])
  sums = np.abs(jax.nn.relu(real @ layer.wi[...])).sum(0)
  np.testing.assert_allclose(aux.records['unit_sizes'], sums[None], rtol=1e-4)
  assert aux.records['unit_tokens'].tolist() == [5]
  np.testing.assert_array_equal(y, layer(x, ctx, {})[0])


@pytest.mark.slow
def test_experts_of_domains_have_half_of_the_units_but_one(start, tmp_path):
  copy = shutil.copytree(start, tmp_path / 'copy', ignore=lambda *_: ['calibration'])
  made(copy, 'read_me:width=8,heads=2', tmp_path / 'run')
  cfg = rundir.opened(tmp_path / 'run')
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
  saved = checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints', keep=None, read_only=True)
  _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
  saved.close()
  masks = [np.asarray(mask).reshape(-1, *mask.shape[-2:]) for mask in jax.tree.leaves(state['router_state'])]
  assert all((mask.sum(-1) == mask.shape[-1] // 2 - 1).all() for mask in masks)
  # The two files are two domains, of which each was looked at.
  kept = copy.glob('calibration/unit_sizes-*')
  sums = [np.load(path / 'sums.npz')['decoder_00'].tolist() for path in kept]
  assert len(sums) == 2 and sums[0] != sums[1]


@pytest.mark.slow
def test_chunks_and_routers_train_and_nothing_else(start, tmp_path):
  made(start, 'factor_llm', tmp_path / 'run', overrides=['--config.checkpoint.keep=20'])
  assert loop.train(rundir.load(tmp_path / 'run'), tmp_path / 'run', 'chunks', ONE) == 0
  first, last = (stored.Reader(tmp_path / 'run' / 'checkpoints', step).inventory for step in (0, 12))
  moved = {name for name in first if name.startswith('params/') and first[name] != last[name]}
  assert moved == {name for name in first if name.startswith('params/') and (
      '/experts/' in name or '/router/' in name)}


@pytest.mark.slow
def test_the_router_and_the_rest_take_turns(start, tmp_path):
  made(start, 'read_me:width=8,heads=2,steps=4', tmp_path / 'run', overrides=['--config.checkpoint.keep=20'])
  assert loop.train(rundir.load(tmp_path / 'run'), tmp_path / 'run', 'masks', ONE) == 0
  steps = [stored.Reader(tmp_path / 'run' / 'checkpoints', step).inventory for step in (0, 4, 12)]
  of_model = [name for name in steps[0] if name.startswith(('params/', 'router_state/'))]
  moved = lambda a, b: {name for name in of_model if a[name] != b[name]}
  first, later = moved(*steps[:2]), moved(*steps[1:])
  assert all('/tied/read_me/' in name for name in first) and first
  assert not later & first and any('/experts/' in name for name in later)
  assert not any(name.startswith('router_state/') for name in later)           # masks stay
