"""Fine-tuning: what is loaded, scored and kept; everything that can be wrong, found before writing."""

import contextlib
import json
import pathlib

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.answer import score
from stmoe.checkpoints import checkpoint
from stmoe.data import batches as pipeline
from stmoe.derive import finetune
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.surgery import layout
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import taskscore

ONE = jax.devices()[:1]
LINES = [dict(inputs=f'is {i} even', targets='yes' if i % 2 == 0 else 'no', choices=['yes', 'no'])
         for i in range(40)]


@pytest.fixture(scope='module')
def jsonl(tmp_path_factory):
  path = tmp_path_factory.mktemp('jsonl') / 'even.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in LINES))
  return path


@pytest.fixture
def overrides(jsonl, tmp_path):
  return [f'--config.{text}' for text in (
      f'data.jsonl={jsonl}', f'data.cache_dir={tmp_path / "cache"}', 'data.inputs_length=24',
      'data.targets_length=8', 'train.steps=4', 'train.batch_size=8', 'eval.batch_size=8', 'eval.every=2',
      'train.log_every=2', 'train.stats_every=4', 'eval.batches=1', 'checkpoint.every=2', 'eval.methods=rank',
      'checkpoint.best=jsonl/accuracy@rank')]


def test_a_run_from_start_to_scores(start, overrides, tmp_path):
  overrides += ['--config.train.trainable=attention']
  cfg, name = finetune.prepare('finetune/jsonl', overrides, start)
  assert cfg.model.layers == (('dm', 1),) and cfg.data.objective == 'prompted' and cfg.data.length == 32
  assert cfg.blocks.m.router.capacity_factor == (1.25, 2.0) and cfg.blocks.m.experts.dropout_rate == 0.4
  run, said = tmp_path / 'run', []
  assert finetune.finetune(start, cfg, run, name, devices=ONE, say=said.append) == 0
  assert '0 new, 0 of the start not used' in said[0] and '(attention)' in said[0]
  told = (run / 'log.txt').read_text()
  assert 'beginning with the parameters that the run was made with' in told and 'continuing' not in told

  [entry] = records.ancestry(run)['lineage']
  [parent] = entry['parents']
  assert entry['method'] == 'finetune' and entry['options']['load'] == 'all'
  assert parent['run'] == str(start) and parent['step'] == 2 and parent['checkpoint'] and parent['config']

  before, after = (parameters(path) for path in (start, run))
  moved = {path for path in before if (before[path] != after[path]).any()}
  assert moved and all('attention' in path for path in moved)
  found = json.loads((run / 'results.json').read_text())
  assert found['step'] == 4 and 0 <= found['scores']['jsonl/accuracy@rank'] <= 100
  assert found['baselines'] == {'jsonl/accuracy': 50.0} and found['examples'] == {'jsonl': 2}
  assert list(found['eval_capacity_factor']['rank'].values()) == [2.0]
  kept = records.best(run)
  assert kept['step'] in (2, 4) and kept['name'] == 'jsonl/accuracy@rank'
  again = score.tasks(rundir.load(run), run, said.append, best=True, devices=ONE)
  assert again['step'] == kept['step']
  assert again['scores']['jsonl/accuracy@rank'] == pytest.approx(kept['value'])
  assert finetune.finetune(start, cfg, run, name, devices=ONE) == 0  # finished: says so


def parameters(path):
  """Returns dict path -> array of the parameters of a run's newest checkpoint."""
  cfg = rundir.load(path)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)
    _, found, _ = saved.part(dict(params=plan.shapes['params']), lambda meta: None)
    saved.close()
  return {name: np.asarray(x) for name, x in found.items()}


def test_partial_loading_says_what_is_new(start, overrides, tmp_path):
  overrides += ['--config.model.d_model=16', '--config.blocks.d.d_ff=48']
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, start)
  with pytest.raises(errors.UserError, match=r'layer/w. is \(1, .*finetune.load=partial') as caught:
    finetune.finetune(start, cfg, tmp_path / 'run', devices=ONE)
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()
  cfg, _ = finetune.prepare('finetune/jsonl', [*overrides, '--config.finetune.load=partial'], start)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    _, record = finetune._load(start, cfg, plan, pipeline.vocabulary(cfg), None)
  assert len(record['new']) == 2 and record['loaded'] and 'layer/wi' in ' '.join(record['new'])


def test_slots_are_kept_where_asked(start, overrides):
  overrides += ['--config.finetune.optimizer=keep']
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, start)
  with cfg.unlocked(), cfg.ignore_type():
    cfg.optimizer = rundir.load(start).optimizer
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    state, _ = finetune._load(start, cfg, states.blueprint(cfg, mesh), pipeline.vocabulary(cfg), None)
  assert int(state['opt_state']['count']) == 2 and int(state['step']) == 0


@pytest.mark.parametrize('more,said', [
    (['data.task=bolq'], "no task is called 'bolq'; nearest: boolq"),
    (['data.metrics=acuracy'], "no metric is called 'acuracy'"),
    (['data.jsonl=nowhere.jsonl'], "no file 'nowhere.jsonl'"),
    (['eval.methods=ranks'], 'eval.methods=.*ranks.* expected .* nearest: rank'),
    (['checkpoint.best=jsonl/f1@rank'], 'no such score; nearest: jsonl/accuracy@rank'),
    (['finetune.load=some'], 'finetune.load'),
    (['finetune.optimizer=keep'], 'do not fit'),
    (['train.trainable=router'], 'train.trainable'),
])
def test_mistakes_are_found_before_anything_is_written(start, overrides, tmp_path, more, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    cfg, _ = finetune.prepare('finetune/jsonl', overrides + [f'--config.{text}' for text in more], start)
    finetune.finetune(start, cfg, tmp_path / 'run', devices=ONE)
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_a_start_that_is_none(overrides, tmp_path):
  with pytest.raises(errors.UserError, match='is not a run directory'):
    finetune.prepare('finetune/jsonl', overrides, tmp_path)


def test_another_vocabulary_and_no_checkpoint(start, overrides, tmp_path):
  model = pathlib.Path(__file__).parents[1] / 'data' / 'sentencepiece' / 'seqio_test_26.model'
  cfg, _ = finetune.prepare('finetune/jsonl', [*overrides, f'--config.data.vocab={model}'], start)
  with pytest.raises(errors.UserError, match='trained with another vocabulary'):
    finetune.finetune(start, cfg, tmp_path / 'run', devices=ONE)
  bare = rundir.make(tmp_path / 'bare')
  (bare / 'config.json').write_text((start / 'config.json').read_text())
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, bare)
  with pytest.raises(errors.UserError, match='has no checkpoint yet'):
    finetune.finetune(bare, cfg, tmp_path / 'run', devices=ONE)
  assert not (tmp_path / 'run').exists()


def test_a_call_that_was_killed_is_done_again(start, overrides, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'train', lambda *args: 0)
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, start)
  run = tmp_path / 'run'
  begin = lambda: finetune.finetune(start, cfg, run, devices=ONE, say=lambda line: None)
  assert begin() == 0
  before, origin = parameters(run), records.ancestry(run)
  for file in ('config.json', 'ancestry.json'):                      # the kill came before them
    (run / file).unlink()
  for step in (run / 'checkpoints' / '0' / 'state').rglob('d/*'):    # of another start, perhaps
    step.unlink()
  assert begin() == 0 and records.ancestry(run) == origin
  assert all((before[name] == x).all() for name, x in parameters(run).items())
  (run / 'config.json').unlink()
  (run / 'checkpoints' / '0').rename(run / 'checkpoints' / '7')
  with pytest.raises(errors.UserError, match='has checkpoints and no config.json'):
    begin()


def test_the_folder_of_another_run_stays_as_it_is(start, overrides, tmp_path):
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, start)
  other = rundir.make(tmp_path / 'other')
  (other / 'config.json').write_text((start / 'config.json').read_text())
  with pytest.raises(errors.UserError, match='holds another experiment'):
    finetune.finetune(start, cfg, other, devices=ONE, say=lambda line: None)
  assert [file.name for file in other.iterdir()] == ['config.json']


def test_ranks_are_likelihoods_of_the_choices(start, overrides):
  """The score of a row is the sum of the log-probabilities of its target and EOS, and padding rows are 0."""
  cfg, _ = finetune.prepare('finetune/jsonl', overrides, start)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    scorer = taskscore.Scorer(cfg, plan)
    state = states.init(cfg, plan)
    batch = check.place(scorer._rower.batch([('is 3 even', 'no')], 8), mesh)
    weights = state['params'], state['router_state']
    found = np.asarray(scorer._rank(*weights, batch, jax.random.key(0)))
    logits, _ = jax.jit(lambda p, r, b: plan.model(p, r)(b, train=False))(*weights, batch)
  at = len('is 3 even') + 1                                          # the source and its EOS
  wanted = [ord('n') + 3, ord('o') + 3, 1]
  logp = jax.nn.log_softmax(np.asarray(logits, np.float32)[0, at:at + 3])
  assert batch['decoder_target_tokens'][0, at:at + 3].tolist() == wanted
  assert found[0] == pytest.approx(sum(float(logp[i, w]) for i, w in enumerate(wanted)), abs=1e-4)
  assert (found[1:] == 0).all()


def test_trivial_systems():
  one = lambda target: dict(references=[target], targets=target, choices=['a', 'b'], group='0')
  found = taskscore.baselines([one('a'), one('b'), one('b')], ('accuracy',))
  assert found == dict(accuracy=pytest.approx(200 / 3))
  written = [dict(references=['x y'], targets='x y', choices=[], group=str(i), baseline='x')
             for i in range(2)]
  assert taskscore.baselines(written, ('squad',)) == dict(em=0.0, f1=pytest.approx(200 / 3))


def test_images_of_another_size_and_other_labels(pictures, tmp_path):
  small = ['--config.train.batch_size=8', '--config.eval.batch_size=8']
  cfg, _ = finetune.prepare('vmoe/finetune:smoke', [*small, '--config.data.image_size=12'], pictures)
  assert (cfg.model.image_size, cfg.model.d_model, cfg.model.representation) == (12, 8, 0)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan, facts = states.blueprint(cfg, mesh), pipeline.source(cfg).info()
    state, record = finetune._load(pictures, cfg, plan, facts['vocab'], None)
  assert record['refitted'] == ['params/positions'] and 'params/positions' in record['loaded']
  assert record['new'] == ['params/head/b', 'params/head/w'] and not np.any(state['params']['head']['w'])
  assert record['ignored'] and all('head' in name or 'representation' in name for name in record['ignored'])
  old = jax.tree.map(np.asarray, stored(pictures, 'opt_state')['averages'])
  new = np.asarray(state['params']['positions'])
  assert new.shape == (1, 37, 8)
  np.testing.assert_array_equal(new[:, 0], old['positions'][:, 0])                 # of the class token
  np.testing.assert_allclose(new[0, [1, 6, 31, 36]], old['positions'][0, [1, 4, 13, 16]], rtol=1e-6)
  cfg, _ = finetune.prepare('vmoe/finetune:smoke', [*small, '--config.finetune.load=all',
                                                    '--config.finetune.fields.vocab_size=20'], pictures)
  with pytest.raises(errors.UserError, match=r'params/head/b is \(20,\).*nearest: .*finetune.load=body'):
    finetune.finetune(pictures, cfg, tmp_path / 'run', devices=ONE)


def test_slots_of_resized_positions_begin_anew(pictures, tmp_path):
  overrides = [f'--config.{text}' for text in (
      'data.image_size=12', 'finetune.optimizer=keep', 'train.batch_size=8', 'eval.batch_size=8')]
  cfg, _ = finetune.prepare('vmoe/finetune:smoke', overrides, pictures)
  with cfg.unlocked():
    cfg.optimizer = dict(name='adamw', average=0.5)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan, facts = states.blueprint(cfg, mesh), pipeline.source(cfg).info()
    state, record = finetune._load(pictures, cfg, plan, facts['vocab'], None)
  own = {f'opt_state/{part}/positions' for part in ('mu', 'nu')}
  assert own < {*record['new']} and record['refitted'] == ['opt_state/averages/positions', 'params/positions']
  assert not any(np.any(state['opt_state'][part]['positions']) for part in ('mu', 'nu'))
  assert all('positions' in name or 'head' in name for name in record['new'])      # others are the start's
  with cfg.unlocked():
    cfg.optimizer = dict(name='adafactor')
  with pytest.raises(errors.UserError, match='opt_state/.* absent in .*nearest: .*finetune.optimizer=fresh'):
    finetune.finetune(pictures, cfg, tmp_path / 'run', devices=ONE)


def test_groups_of_patches_follow_the_size_of_images():
  start = experiment.load('vmoe/imagenet21k')[0]
  cfg = experiment.load('vmoe/finetune')[0]
  finetune.adopt(cfg, start)
  assert cfg.model.vocab_size == 1000 and cfg.model.image_size == 384
  assert start.blocks.m.group_size == 8 * 197 and cfg.blocks.m.group_size == 8 * 577
  assert cfg.blocks.m.router.capacity_factor == (1.5, 1.5)
  with start.unlocked(), start.ignore_type():
    start.model = dict(name='resnet')
  with pytest.raises(errors.UserError, match='finetune.fields.head_bias: model resnet of the start has no'):
    finetune.adopt(experiment.load('vmoe/finetune')[0], start)


def stored(path, part):
  """Returns a part of the state of a run's newest checkpoint."""
  cfg = rundir.load(path)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    with contextlib.closing(checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)) as saved:
      _, found, _ = saved.part({part: plan.shapes[part]}, lambda meta: None)
  tree = {}
  for name, x in found.items():
    layout.put(tree, tuple(name.split('/')[1:]), x)
  return tree
