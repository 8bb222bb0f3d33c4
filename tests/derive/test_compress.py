"""Compressed runs: at keep=1.0 any surgery leaves the logits; what is written is a run with its ancestry."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.answer import score
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.data import batches as pipeline
from stmoe.derive import compress
from stmoe.derive import convert
from stmoe.runs import directory as rundir
from stmoe.runs import lineage
from stmoe.runs import read
from stmoe.runs import records
from stmoe.train import loop
from stmoe.train import state as states
from tests.derive import drawn
from tests.train import tiny_run

ONE = jax.devices()[:1]
MIXTRAL = pathlib.Path(__file__).parents[1] / 'data' / 'checkpoints' / 'mixtral_window_pad'
TOP2 = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None), second_policy='all')


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A run with two sparse layers, one of them inside of another layer."""
  corpus = tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))
  moe = dict(layer='moe', executor='gather', group_size=None, router=TOP2,
                experts=dict(name='mlp', d_ff=12, activation='gelu', init_scale=1.0))
  inner = {key: value for key, value in moe.items() if key != 'layer'} | dict(name='moe')
  blocks = dict(d=dict(layer='dense', d_ff=16), m=moe,
                s=dict(layer='shared', d_ff=8, inner=inner | dict(experts=dict(name='glu', d_ff=8))))
  cfg = tiny_run.config(corpus, **{'blocks': blocks, 'model.layers': (('dm', 1), ('s', 1))})
  return drawn.write(tmp_path_factory.mktemp('start') / 'run', cfg, 4, ONE)


def logits(path):
  """Returns the logits of a run's newest checkpoint on the first batch of evaluation."""
  cfg = rundir.opened(path)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)
    _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
    saved.close()
  batch = next(iter(pipeline.eval_batches(cfg)))
  model = plan.model(state['params'], state['router_state'])
  return np.asarray(jax.jit(lambda m, b: m(b)[0])(model, batch))


def made(start, surgery, path, said=None, **options):
  say = (lambda line: None) if said is None else said.append
  return compress.compress(start, surgery, path, batches=2, devices=ONE, say=say, **options)


# Those that permute or scale hidden units, put matrices together or add weights up change a sum's last bits.
ROUNDED = {'average', 'ea_quant', 'mc_smoe', 'merge', 'sub_moe'}


def assert_kept(name, after, before):
  """Asserts equal logits, up to round-off for surgery `name` of ROUNDED."""
  assert np.ptp(before) > 0.1
  if name not in ROUNDED:
    np.testing.assert_array_equal(after, before)
  np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6 * np.abs(before).max())


@pytest.fixture(scope='module')
def opened(start):
  return drawn.Opened(start, ONE)


KEEPING = [name for name in lookup.available('surgery') if 'keep' in lookup.options('surgery', name)]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ('merge', 'prune', 'slim_moe')))
    for name in KEEPING])
def test_what_keeps_all_leaves_the_logits(opened, name):
  made, changes = opened.made('surgery', f'{name}:keep=1.0')
  same = jax.tree.structure(made) == jax.tree.structure(opened.params) and all(
      a is b or np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(opened.params)))
  if changes or not same:
    assert_kept(name, opened.logits(made, changes), opened.before)


@pytest.mark.slow
@pytest.mark.parametrize('name', KEEPING)
def test_a_run_that_keeps_all_has_the_same_logits(start, name, tmp_path):
  made(start, f'{name}:keep=1.0', tmp_path / 'run')
  assert_kept(name, logits(tmp_path / 'run'), logits(start))


@pytest.mark.slow
def test_a_run_of_a_run_outlives_both_and_says_its_ancestry(start, tmp_path):
  copy, said = shutil.copytree(start, tmp_path / 'copy', ignore=lambda *_: ['calibration']), []
  facts = made(copy, 'prune:keep=0.5,by=random', tmp_path / 'half', said)
  assert facts['changes'] == {'blocks.m.router.num_experts': 2, 'blocks.s.inner.router.num_experts': 2}
  assert facts['parameters'][0] > facts['parameters'][1]
  assert not said and not (copy / 'calibration').exists()            # random needs no data
  facts = made(tmp_path / 'half', 'merge:keep=0.5', tmp_path / 'run', said, evaluate=True)
  calibrating, scored = said
  assert calibrating == 'calibrating on 2 batches: load, logit_products' and facts['calibration_seconds'] > 0
  shutil.rmtree(copy)
  shutil.rmtree(tmp_path / 'half')
  lines = list(lineage.lines(tmp_path / 'run'))
  assert lines[0].startswith('made by merge (keep=0.5, allocation=layer, by=logits, weights=usage, ')
  assert lines[1].startswith(f'  {tmp_path}/half, step 0 (config ')
  assert lines[2] == '    made by prune (keep=0.5, by=random, seed=0, gates=new) of'
  assert lines[3].startswith(f'      {tmp_path}/copy, step 4 (config ') and 'checkpoint' in lines[3]
  assert lines[4] == '        trained from nothing'
  cfg = rundir.load(tmp_path / 'run')
  router = cfg.blocks.s.inner.router
  assert (router.name, router.num_experts, router.inner.num_experts) == ('remap', 1, 2)
  at, values = score.score(cfg, tmp_path / 'run', said.append, devices=ONE)      # with the data of its own
  [first] = read.read(tmp_path / 'run').lines
  assert at == first['step'] == 0 and np.isfinite(values['eval/loss'])
  assert first['eval/loss'] == pytest.approx(values['eval/loss'], rel=1e-6)
  assert scored.startswith(f"before training: eval loss {values['eval/loss']:.4f}")


def test_nothing_is_written_where_it_cannot_be(start, tmp_path):
  def refused(surgery, run=start, path=tmp_path / 'run', **options):
    with pytest.raises(errors.UserError) as caught:
      made(run, surgery, path, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)
  assert 'no surgery is called' in refused('pruning') and 'nearest: prune' in refused('pruning')
  assert 'ids is no target with a teacher' in refused('prune', distil='ids')
  assert "prune has no field 'keeps'; nearest: keep" in refused('prune:keeps=1')
  assert 'expected a number above 0, at most 1' in refused('prune:keep=0')
  assert 'keep=0.25 leaves 1 of 4 experts in blocks.m, and a token has 2' in refused('prune:keep=0.25')
  assert 'holds a run already' in refused('prune', path=start)
  assert 'is not a run directory' in refused('prune', run=tmp_path)
  assert 'no checkpoint of step 3' in refused('prune', step=3)
  assert not (tmp_path / 'run').exists()


def test_an_earlier_run_without_record_is_a_parent_too(start, tmp_path):
  copy = shutil.copytree(start, tmp_path / 'copy')
  (copy / 'finetune.json').write_text('{"start": "/old", "step": 9, "recipe": {"load": "all"}}')
  made(copy, 'prune:by=magnitude', tmp_path / 'run')
  first, second = records.ancestry(tmp_path / 'run')['lineage']
  assert first['parents'][0]['made'] == 1 and second['parents'][0]['run'] == '/old'


@pytest.mark.slow
def test_a_quantised_run_is_evaluated_and_trains_on(start, tmp_path):
  facts = made(start, 'ea_quant:bits=8', tmp_path / 'run')
  before, after = facts['bytes']
  assert after < 0.9 * before
  assert_close = np.testing.assert_allclose
  assert_close(logits(tmp_path / 'run'), logits(start), atol=0.1 * np.abs(logits(start)).max())
  assert 'codes already' in refused_of(tmp_path / 'run', 'ea_quant', tmp_path / 'again')
  made(tmp_path / 'run', 'prune:keep=0.5,by=random', tmp_path / 'half')           # of codes, too
  cfg, stored_codes = rundir.load(tmp_path / 'run'), []
  for _ in range(2):
    arrays = stored.Reader(tmp_path / 'run' / 'checkpoints', cfg.train.steps * len(stored_codes)).inventory
    stored_codes.append({name: one for name, one in arrays.items() if '/planes' in name})
    assert loop.train(cfg, tmp_path / 'run', 'quantised', ONE) == 0
  assert stored_codes[0] and stored_codes[0] == stored_codes[1]
  assert all(one[-1] == 'uint8' for one in stored_codes[0].values())
  values = records.done(tmp_path / 'run')
  assert np.isfinite(values['eval/loss'])
  spread = rundir.load(tmp_path / 'run')
  spread.mesh.expert = 2                 # codes are split as experts are
  of_four = score.score(spread, tmp_path / 'run', print, devices=jax.devices()[:4])[1]
  assert of_four['eval/loss'] == pytest.approx(values['eval/loss'], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('surgery', ['d2moe', 'compressed_experts'])
def test_another_form_of_a_layer_trains_on(start, surgery, tmp_path):
  made(start, surgery, tmp_path / 'run')
  cfg = rundir.load(tmp_path / 'run')
  assert loop.train(cfg, tmp_path / 'run', surgery, ONE) == 0
  assert np.isfinite(records.done(tmp_path / 'run')['eval/loss'])
  assert 'nearest' in refused_of(tmp_path / 'run', surgery, tmp_path / 'again')


def refused_of(run, surgery, path):
  with pytest.raises(errors.UserError) as caught:
    made(run, surgery, path)
  return str(caught.value)


@pytest.mark.slow
def test_a_slimmed_run_is_distilled_and_slimmed_again(start, tmp_path):
  """SlimMoE in stages: the slopes of the second are those of the distance to the first teacher."""
  facts = made(start, 'slim_moe:keep=0.7', tmp_path / 'a', overrides=['--config.train.steps=3'],
               distil='teacher:weight=1.0,top=8')
  widths = {field: facts['changes'][f'blocks.{field}.experts.d_ff'] for field in ('m', 's.inner')}
  assert widths == {'m': 8, 's.inner': 6}
  assert loop.train(rundir.load(tmp_path / 'a'), tmp_path / 'a', 'slim', ONE) == 0
  made(tmp_path / 'a', 'slim_moe:keep=0.5,heads=0.5', tmp_path / 'b')
  cfg = rundir.load(tmp_path / 'b')
  assert cfg.blocks.m.experts.d_ff == 4 and cfg.model.num_heads == 1 and cfg.loss.run == str(start)
  assert loop.train(cfg, tmp_path / 'b', 'slim', ONE) == 0
  assert records.done(tmp_path / 'b')['eval/distil'] > 0


@pytest.mark.slow
def test_a_merged_run_trains_on(start, tmp_path):
  made(start, 'merge:keep=0.5', tmp_path / 'run')
  cfg = rundir.load(tmp_path / 'run')
  assert loop.train(cfg, tmp_path / 'run', 'merged', ONE) == 0
  assert records.done(tmp_path / 'run')['step'] == cfg.train.steps
  assert next(iter(records.stats(tmp_path / 'run')))[1]['decoder_01'].shape == (2,)


@pytest.mark.slow
def test_a_merged_run_is_distilled_then_factored_and_pruned_by_rows(start, tmp_path):
  """MC-SMoE from the configuration alone: the teacher is the run that was merged."""
  words = '--config.groups.router.train=False', '--config.train.steps=6'
  made(start, 'merge:keep=0.5', tmp_path / 'merged', overrides=words, distil='mc_smoe:weight=0.3')
  assert loop.train(rundir.load(tmp_path / 'merged'), tmp_path / 'merged', 'merged', ONE) == 0
  loss = rundir.load(tmp_path / 'merged').loss
  assert (loss.run, loss.step, loss.weight, loss.inner.name) == (str(start), 4, 0.3, 'ids')
  made(tmp_path / 'merged', 'mc_smoe:keep=0.25,rank=2,before=1,after=2', tmp_path / 'run')
  cfg = rundir.load(tmp_path / 'run')
  assert loop.train(cfg, tmp_path / 'run', 'small', ONE) == 0
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints', keep=None, read_only=True)
    _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
    saved.close()
  parts = [x for path, x in jax.tree.leaves_with_path(state['params']) if path[-1].key == 's']
  zero = sum(float((x == 0).sum()) for x in parts) / sum(x.size for x in parts)
  assert 0.6 < zero < 0.8                                            # whole rows, of all matrices together


def test_an_import_is_pruned_and_exported_in_its_own_form(tmp_path):
  convert.read(MIXTRAL, tmp_path / 'imported')
  made(tmp_path / 'imported', 'prune:by=magnitude', tmp_path / 'half')
  shutil.rmtree(tmp_path / 'imported')
  assert list(lineage.lines(tmp_path / 'half'))[-1].strip() == 'made elsewhere'
  convert.write(tmp_path / 'half', tmp_path / 'out')
  said = files.read_json(tmp_path / 'out' / 'config.json')
  assert said['num_local_experts'] * 2 == files.read_json(MIXTRAL / 'config.json')['num_local_experts']
  convert.read(tmp_path / 'out', tmp_path / 'again')
  made(tmp_path / 'half', 'ea_quant:smooth=none,down=False,router_bits=None', tmp_path / 'codes')
  with pytest.raises(errors.UserError, match="experts 'packed' around 'glu' .*codes.* nearest: a run"):
    convert.write(tmp_path / 'codes', tmp_path / 'not')
  arrays = lambda run: stored.Reader(run / 'checkpoints', 0).inventory
  parameters = lambda run: {name: one for name, one in arrays(run).items() if name.startswith('params/')}
  assert parameters(tmp_path / 'again') == parameters(tmp_path / 'half')
