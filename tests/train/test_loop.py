"""Whole small runs in this process: files, signals, refused steps, fallbacks, other experiments."""

import json
import os
import pathlib
import re
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.answer import score
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.data import batches as pipeline
from stmoe.hosts import signals
from stmoe.runs import by_step
from stmoe.runs import directory as rundir
from stmoe.runs import log
from stmoe.runs import metrics_file
from stmoe.runs import read
from stmoe.train import loop
from stmoe.train import state as states
from tests.train import tiny_run

ONE = jax.devices()[:1]


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp('finished') / 'run'
  assert loop.train(tiny_run.config(corpus), path, 'tiny', ONE) == 0
  return path


def metrics(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def at(monkeypatch, step, act):
  """Does `act(loop)` after step `step` of the next run."""
  advance = loop.Loop.advance

  def patched(self):
    advance(self)
    if self.step == step:
      act(self)
  monkeypatch.setattr(loop.Loop, 'advance', patched)


def test_a_run_directory(corpus, finished):
  for name in ('config.json', 'env.json', 'metrics.jsonl', 'log.txt', 'checkpoints/12', 'router_stats/6.npz'):
    assert (finished / name).exists(), name
  lines = metrics(finished)
  assert [line['step'] for line in lines] == [2, 4, 6, 8, 10, 12]
  names = {'tokens', 'flops', 'time', 'loss/ce', 'loss/total', 'loss/aux_balance', 'loss/router_z', 'loss/z',
           'lr', 'grad_norm', 'skipped', 'moe/drop_frac', 'moe/decoder_01/max_load_ratio', 'moe/load_entropy'}
  assert all(names <= set(line) for line in lines)
  assert lines[-1]['loss/ce'] < lines[0]['loss/ce']
  assert [('eval/bits_per_byte' in line) for line in lines] == [False, False, True] * 2
  assert lines[1]['tokens'] == 4 * 8 * 32 and lines[1]['flops'] == 2 * lines[0]['flops'] > 0
  with np.load(finished / 'router_stats' / '6.npz') as stats:
    assert stats['moe_load'].shape == (1, 4) and stats['layers'].tolist() == ['decoder_01']
    assert stats['moe_load'].sum() == 8 * 32
  done = json.loads((finished / 'DONE').read_text())
  assert done['step'] == 12 and done['eval/loss'] == lines[-1]['eval/loss']
  environment = json.loads((finished / 'env.json').read_text())
  assert environment['name'] == 'tiny' and environment['corpus']['num_bytes'] > 0
  # Bits per byte: nats of the 2 batches over their bytes, which are all their tokens but EOS.
  scored = pipeline.eval_batches(tiny_run.config(corpus), most=2)
  tokens = np.concatenate([b['decoder_target_tokens'][b['decoder_loss_weights'] > 0] for b in scored])
  assert len(tokens) == lines[-1]['eval/tokens'] < environment['corpus']['num_tokens']
  bits = lines[-1]['eval/loss'] * len(tokens) / np.log(2) / (tokens != 1).sum()
  np.testing.assert_allclose(lines[-1]['eval/bits_per_byte'], bits, rtol=1e-6)


def test_the_time_of_a_line_is_an_object_and_every_number_is_explained(finished):
  page = (pathlib.Path(__file__).parents[2] / 'docs' / 'metrics.md').read_text(encoding='utf-8')
  explained = set(re.findall(r'`([^`]+)`', page))
  for line in metrics(finished):
    assert {'seconds', 'tokens_per_s', 'flops_per_s', 'host_memory_gib'} <= line['time'].keys()
    layered = {re.sub('^moe/(decoder_01/)?', '', name) if name.startswith('moe/') else
               re.sub('^parts/[a-z]+/', 'parts/PART/', name) for name in line}
    assert not (layered | line['time'].keys()) - explained
    assert {name.split('/')[1] for name in line if name.startswith('parts/')} <= explained
  [*_, before, last] = metrics(finished)
  seconds = last['time']['seconds'] - before['time']['seconds']
  assert last['time']['tokens_per_s'] * seconds == pytest.approx(last['tokens'] - before['tokens'])
  assert last['time']['flops_per_s'] * seconds == pytest.approx(last['flops'] - before['flops'])
  done = json.loads((finished / 'DONE').read_text())
  assert done['time'] == last['time']
  assert read.read(finished).last('tokens_per_s') == last['time']['tokens_per_s']
  assert read.read(finished).done['time'] == read.read(finished).last('time') == last['time']['seconds']


def test_a_finished_run_says_so_and_a_longer_one_goes_on(corpus, finished, capsys, monkeypatch):
  monkeypatch.setattr(loop, 'Loop', None)                            # would fail if it were used
  assert loop.train(tiny_run.config(corpus), finished, 'tiny', ONE) == 0
  assert 'is finished: 12 steps' in capsys.readouterr().out
  assert (finished / 'DONE').exists()


def test_another_experiment_is_refused(corpus, finished):
  with pytest.raises(errors.UserError, match='another experiment: model.d_model is 16 there and 32 here'):
    loop.train(tiny_run.config(corpus, **{'model.d_model': 32}), finished, 'tiny', ONE)
  rundir.claim(finished, tiny_run.config(corpus, **{'train.log_every': 3, 'checkpoint.keep': 3}))
  with pytest.raises(errors.UserError, match='another vocabulary'):
    rundir.check_same(dict(vocab='a', config='x'), dict(vocab='b', config='x'))


def test_score_is_the_run_s_own_evaluation(finished):
  step, values = score.score(rundir.load(finished), finished, lambda text: None, devices=ONE)
  last = metrics(finished)[-1]
  assert step == 12
  assert {k: pytest.approx(v, rel=1e-6) for k, v in values.items()} == {k: last[k] for k in values}


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_signals_save_and_the_run_continues(corpus, finished, tmp_path, monkeypatch, number, code):
  before = signal.getsignal(number)
  with monkeypatch.context() as patch:
    at(patch, 5, lambda self: os.kill(os.getpid(), number))
    assert loop.train(tiny_run.config(corpus), tmp_path, 'tiny', ONE) == code
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4', '5']
  assert not (tmp_path / 'DONE').exists()
  assert signal.getsignal(number) == before
  if number == signal.SIGINT:
    return
  # The newest checkpoint is then cut short: the run goes on from the one before it.
  files = [f for f in (tmp_path / 'checkpoints' / '5').rglob('*') if f.is_file()]
  largest = max(files, key=lambda f: f.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  assert loop.train(tiny_run.config(corpus), tmp_path, 'tiny', ONE) == 0
  assert 'falling back to step 4' in (tmp_path / 'log.txt').read_text()
  drop_time = lambda line: {k: v for k, v in line.items() if k != 'time'}
  assert [drop_time(x) for x in metrics(tmp_path)] == [drop_time(x) for x in metrics(finished)]


def test_a_second_interrupt_does_not_wait():
  with signals.Signals() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.code == 130
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_steps_that_are_not_finite_stop_the_run_with_its_checkpoint(corpus, tmp_path, monkeypatch, capsys):
  def poison(self):
    embed = self.state['params']['embed']
    name = next(iter(embed))
    embed[name] = embed[name] * np.nan
  at(monkeypatch, 5, poison)
  with pytest.raises(errors.UserError, match='stopped at step 8; checkpoints from before these steps: 4;'):
    loop.train(tiny_run.config(corpus), tmp_path, 'tiny', ONE)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']
  assert [(line['step'], line['skipped'], line['loss/ce'] is None) for line in metrics(tmp_path)] == [
      (2, 0, False), (4, 0, False), (6, 1, True)]
  said = capsys.readouterr().err
  assert 'not finite' in said and said.count('layer decoder_01: stmoe/routers/switch.py: ') == 1, said


def test_an_update_that_is_not_finite_is_never_saved_and_ends_the_run(corpus, tmp_path, monkeypatch):
  def poison(self):
    self.state['opt_state'] = jax.tree.map(
        lambda x: x * np.inf if jnp.issubdtype(x.dtype, jnp.floating) else x, self.state['opt_state'])
  at(monkeypatch, 11, poison)
  with pytest.raises(errors.UserError, match='step 12 was not saved: .* is not finite .*: step 4, step 8;'):
    loop.train(tiny_run.config(corpus), tmp_path, 'tiny', ONE)
  assert not (tmp_path / 'DONE').exists() and not (tmp_path / 'checkpoints' / '12').exists()


def test_a_run_whose_last_step_was_refused_is_not_done(corpus, tmp_path, monkeypatch):
  def poison(self):
    embed = self.state['params']['embed']
    name = next(iter(embed))
    embed[name] = embed[name] * np.nan
  at(monkeypatch, 11, poison)
  with pytest.raises(errors.UserError, match='the last 1 steps .* that is not finite .*: 4, 8;'):
    loop.train(tiny_run.config(corpus), tmp_path, 'tiny', ONE)
  assert not (tmp_path / 'DONE').exists() and not (tmp_path / 'checkpoints' / '12').exists()


def test_a_step_is_saved_before_it_is_evaluated_and_the_evaluation_made_up_for(
    corpus, finished, tmp_path, monkeypatch, capsys):
  def gone(self):
    raise errors.UserError('the text is gone')
  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, '_evaluate', gone)
    cfg = tiny_run.config(corpus, **{'checkpoint.every': 6})
    with pytest.raises(errors.UserError, match='the text is gone'):
      loop.train(cfg, tmp_path / 'run', 'tiny', ONE)
  assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['6']
  assert [line['step'] for line in metrics(tmp_path / 'run')] == [2, 4]
  assert loop.train(cfg, tmp_path / 'run', 'tiny', ONE) == 0
  drop_time = lambda line: {k: v for k, v in line.items() if k != 'time'}
  assert [drop_time(x) for x in metrics(tmp_path / 'run')] == [drop_time(x) for x in metrics(finished)]
  said = (tmp_path / 'run' / 'log.txt').read_text()
  assert 0 < said.index('first step took') < said.index('step 6: eval loss')


def test_a_work_directory_may_have_any_legal_name(corpus, tmp_path, capsys):
  path = tmp_path / 'a[1]b**' / 'gs:' / 'q?{m}\\' / 'run [2026] %20#'
  cfg = tiny_run.config(corpus, **{'train.steps': 4, 'eval.every': 4})
  assert loop.train(cfg, path, 'tiny', ONE) == 0
  assert score.score(cfg, path, print, devices=ONE)[0] == 4
  assert 'tokens/s' in capsys.readouterr().err
  longer = tiny_run.config(corpus, **{'train.steps': 5, 'eval.every': 4})
  assert loop.train(longer, path, 'tiny', ONE) == 0
  said = capsys.readouterr().err
  assert 'continuing from the checkpoint of step 4' in said
  assert 'train.steps was 4 and is 5, which moves the schedule' in said
  assert 'step 5/5' in said and 'tokens/s' not in said               # the only step of a process is not timed


def test_a_start_that_is_not_finite_is_said_and_its_run_is_not_done(
    corpus, finished, tmp_path, monkeypatch, capsys):
  path, cfg = tmp_path / 'run', tiny_run.config(corpus)
  shutil.copytree(finished, path)
  with states.on_mesh(cfg.mesh, ONE) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints')
    _, state, data, meta = saved.restore(plan.shapes, lambda meta: None, print)
    saved.close()
    shutil.rmtree(path / 'checkpoints')
    state['params'] = jax.tree.map(lambda x: x * np.nan, state['params'])
    examined = checksum.examined
    monkeypatch.setattr(checksum, 'examined', lambda x: (examined(x)[0], None))   # an older version
    saved = checkpoint.Checkpoints(path / 'checkpoints')
    saved.save(10, dict(state, step=state['step'] - 2), data, meta)
    saved.close()
    monkeypatch.undo()
  (path / 'DONE').unlink(missing_ok=True)
  with pytest.raises(errors.UserError, match='the last 2 steps .* checkpoints from before these steps: 10;'):
    loop.train(cfg, path, 'tiny', ONE)
  assert 'the checkpoint of step 10 holds numbers that are not finite' in capsys.readouterr().err
  assert not (path / 'DONE').exists()


@pytest.mark.slow
def test_a_profile_is_written(corpus, tmp_path):
  cfg = tiny_run.config(corpus, **{'profile.start': 1, 'profile.steps': 1})
  assert loop.train(cfg, tmp_path, 'tiny', ONE) == 0
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('changed, message', [
    ({'model.vocab_size': 200}, 'model.vocab_size=200, but data.vocab=.bytes. has 259 ids'),
    ({'data.files': ('missing.txt',)}, 'missing.txt'),
    ({'losses': dict(balence=(0.1, 'mean'))}, 'nearest: balance'),
    ({'blocks.m.group_size': 48}, 'group_size 48')])
def test_mistakes_end_before_anything_is_compiled(corpus, tmp_path, monkeypatch, changed, message):
  monkeypatch.setattr(loop.states, 'init', None)                     # the first thing that compiles
  with pytest.raises(errors.UserError, match=message):
    loop.train(tiny_run.config(corpus, **changed), tmp_path / 'run', 'tiny', ONE)
  assert not (tmp_path / 'run').exists()


def test_metrics_after_a_step_are_cut_off_and_half_a_line_too(tmp_path):
  first = metrics_file.Metrics(tmp_path, 0)
  for step in (1, 2, 3):
    first.write(step, {'loss/ce': np.float32(step), 'bad': np.nan, 'n': 7})
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 4, "los')
  second = metrics_file.Metrics(tmp_path, 2)
  second.write(3, {'loss/ce': np.float32(30)})
  assert [(m['step'], m['loss/ce']) for m in metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert metrics(tmp_path)[0] == {'step': 1, 'loss/ce': 1.0, 'bad': None, 'n': 7}


def test_a_damaged_line_of_metrics_is_named_and_no_other_lost(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
  said = []
  found = metrics_file.Metrics(tmp_path, 3, said.append)
  assert found.lines == metrics(tmp_path) == [{'step': 1}, {'step': 3}]
  assert len(said) == 1 and 'metrics.jsonl: line 2 is not JSON' in said[0]


def test_files_of_a_run_are_not_written_through_links(tmp_path):
  other, run = tmp_path / 'other', tmp_path / 'run'
  run.mkdir()
  other.write_text('precious')
  for name in ('metrics.jsonl', 'log.txt', 'evals.jsonl', 'DONE'):
    (run / name).symlink_to(other)
  metrics_file.Metrics(run, 0)
  rundir.finish(run, {'step': 1})
  for write in (lambda: log.Log(run), lambda: rundir.add_evaluation(run, 1, 'a', 1, {})):
    with pytest.raises(errors.Damaged, match='it is a link'):
      write()
  assert other.read_text() == 'precious' and not (run / 'DONE').is_symlink()


def test_a_directory_whose_name_is_no_unicode_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='caf.* is not UTF-8'):
    rundir.make(tmp_path / 'caf\udce9')
  assert list(tmp_path.iterdir()) == []


def test_what_is_no_unicode_is_said_and_recorded(tmp_path):
  said = log.Log(tmp_path)
  said.show = types.SimpleNamespace(say=lambda text: None)
  said('caf\udce9')
  said.close()
  assert 'caf\\udce9' in (tmp_path / 'log.txt').read_text()
  said('after its end')
  assert 'after' not in (tmp_path / 'log.txt').read_text()


def test_router_stats_of_layers_with_different_experts(tmp_path):
  by_step.write_router_stats(tmp_path, 5, dict(a=np.ones(2), b=np.ones(4)), {})
  with np.load(tmp_path / 'router_stats' / '5.npz') as stats:
    assert np.isnan(stats['moe_load']).tolist() == [[False, False, True, True], [False] * 4]
  by_step.drop_later(tmp_path, 4)
  assert not list((tmp_path / 'router_stats').iterdir())
