"""`stmoe eval RUN --sweep`: one checkpoint under several values of a field, its records and its figure."""

import json
import shutil

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import figures
from stmoe.runs import directory as rundir
from stmoe.runs import owner
from stmoe.runs import read as runs
from stmoe.train import loop
from tests.train import tiny_run

FIELD = 'blocks.m.router.eval_k'
ROUTER = dict(name='smoe_dropout', num_experts=4, k_min=1, total_steps=4, eval_k=None)


def config(folder, **changed):
  return tiny_run.config(folder, **{
      'model.layers': (('m', 1),), 'blocks.m.router': ROUTER, 'losses': dict(balance=(0.0, 'mean')),
      'train.steps': 4,
      'train.log_every': 1, 'eval.batches': 1, 'eval.every': 100, 'eval.draws': 1, 'checkpoint.every': 4,
      'mesh.data': 8} | changed)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of four steps in which k grows from 1 to 3, and its corpus."""
  corpus = tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))
  path = tmp_path_factory.mktemp('run') / 'run'
  assert loop.train(config(corpus), path, 'tiny') == 0
  return path, corpus


@pytest.mark.slow
def test_the_schedule_is_logged(trained):
  # 1 + round(3 s / 4) before the update of step s.
  assert runs.read(trained[0]).series('moe/active_k')[1].tolist() == [1, 2, 3, 3]


@pytest.mark.slow
def test_a_sweep_prints_records_and_draws(trained, command):
  path, _ = trained
  (path / 'evals.jsonl').unlink(missing_ok=True)
  code, out, _ = command('eval', path, '--sweep', f'{FIELD}=4,1', '--json')
  rows = json.loads(out)
  assert code == 0 and [(row['step'], row['value']) for row in rows] == [(4, 4), (4, 1)]
  # The run's own evaluation is with all four experts.
  last = runs.read(path).last('eval/loss')
  np.testing.assert_allclose(rows[0]['eval/loss'], last, rtol=1e-6)
  assert rows[1]['eval/loss'] != rows[0]['eval/loss']
  code, out, _ = command('eval', path, '--sweep', 'blocks.*.router.eval_k=1')
  header, _, row = out.splitlines()
  assert header.split()[:3] == ['blocks.*.router.eval_k', 'loss', 'perplexity'] and row.split()[0] == '1'
  np.testing.assert_allclose(float(row.split()[1]), rows[1]['eval/loss'], rtol=1e-5)
  lines = [json.loads(line) for line in (path / 'evals.jsonl').read_text().splitlines()]
  assert [(line['field'], line['value']) for line in lines] == [(FIELD, 4), (FIELD, 1),
                                                                ('blocks.*.router.eval_k', 1)]
  run = runs.read(path)
  assert [value for value, _ in run.sweeps[FIELD]] == [1, 4]
  drawn = figures.draw(run)
  x, y = drawn['sweep'].axes[0].lines[0].get_data()
  assert list(x) == [1, 4] and y[1] == run.sweeps[FIELD][1][1]['eval/bits_per_byte']
  assert list(drawn['active_k'].axes[0].lines[0].get_ydata()) == [1, 1, 2, 3, 3]


def test_fields_of_evaluation_may_differ_when_a_run_goes_on(trained):
  path, corpus = trained
  router = 'blocks.m.router'
  rundir.verify(path, config(corpus, **{f'{router}.eval_k': 2, 'eval.draws': 3}))
  assert rundir.identity(config(corpus, **{f'{router}.eval_k': 2})) == rundir.identity(config(corpus))
  rundir.verify(path, config(corpus, **{'data.eval_replaced': 0.1}))
  for field, value in ((f'{router}.k_min', 2), ('data.eval_split', 'train'), ('data.replaced', 0.1)):
    with pytest.raises(errors.UserError, match=f'another experiment: {field}'):
      rundir.verify(path, config(corpus, **{field: value}))


def test_a_run_begun_before_a_field_was_there_goes_on_without_it(trained, tmp_path):
  path, corpus = trained
  fields = json.loads((path / 'config.json').read_text())
  del fields['data']['replaced']
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  assert 'replaced' not in rundir.written(tmp_path).data and rundir.load(tmp_path).data.replaced == 0.0
  younger = lambda share: config(corpus, **{'data.replaced': share})
  rundir.verify(tmp_path, younger(0.0))
  mine = rundir.identity_of(tmp_path)
  assert rundir.identity(younger(0.0)) == mine != rundir.identity(younger(0.1))
  with pytest.raises(errors.UserError, match='data.replaced is 0.0 there and 0.1 here'):
    rundir.verify(tmp_path, younger(0.1))


def test_newer_checkpoints_and_later_lines_count(tmp_path):
  lines = [(1, 'a.b', 8, 0.5), (2, 'a.b', 8, 0.4), (2, 'a.b', 2, 0.3), (2, 'a.b', 8, 0.1), (1, 'c', 'x', 9.0)]
  for step, field, value, loss in lines:
    rundir.add_evaluation(tmp_path, step, field, value, {'eval/loss': loss})
  assert runs.read_sweeps(tmp_path) == {
      'a.b': [(2, {'eval/loss': 0.3}), (8, {'eval/loss': 0.1})], 'c': [('x', {'eval/loss': 9.0})]}
  assert runs.read_sweeps(tmp_path / 'nothing') == {}


@pytest.mark.parametrize('sweep, words', [
    ('blocks.m.router.eval_q=1', ['config.blocks.m.router.eval_q', 'nearest: config.blocks.m.router.eval_k']),
    ('blocks.*.router.evl_k=1', ['fits no field', 'nearest: blocks.m.router.eval_k']),
    (f'{FIELD}=1,9', ['eval_k=9 with num_experts=4']),
    ('eval.draws=1,many', ['eval.draws=many', 'a whole number']),
    (FIELD, ['write FIELD=V1,V2']), (f'{FIELD}=', ['write FIELD=V1,V2'])])
def test_mistakes(trained, mistake, monkeypatch, sweep, words):
  monkeypatch.setattr(jax, 'device_get', None)                       # nothing is evaluated before
  line = mistake('eval', trained[0], '--sweep', sweep)
  assert all(word in line for word in words), line


@pytest.fixture
def copied(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / 'copy')


def test_best_is_evaluated_without_tasks(copied, command, mistake):
  assert 'has no best checkpoint' in mistake('eval', copied, '--best')
  shutil.copytree(copied / 'checkpoints' / '4', copied / 'best' / '2')
  code, out, _ = command('eval', copied, '--best', '--json')
  assert code == 0 and json.loads(out)['step'] == 2
  code, out, _ = command('eval', copied, '--best', '--sweep', f'{FIELD}=1', '--json')
  assert code == 0 and [row['step'] for row in json.loads(out)] == [2]
  assert '--best and --step' in mistake('eval', copied, '--best', '--step', '4')


def test_a_configuration_that_was_changed_is_no_longer_the_checkpoint_s(copied, tmp_path, mistake, command):
  fields = json.loads((copied / 'config.json').read_text())
  (copied / 'config.json').write_text(json.dumps(fields | {'seed': 1}))
  for words in (['eval', copied], ['infer', copied], ['report', copied],
                ['convert', copied, tmp_path / 'target', '--to', 't5'],
                ['finetune', copied, 'finetune/jsonl', '--config.data.jsonl=none'],
                ['upcycle', copied, 'lm/text:smoke', '--config.data.files=none']):
    assert 'config.json: is not the configuration that the checkpoint of step 4' in mistake(*words)
  changed = fields | {'eval': fields['eval'] | {'batches': 2}}       # which a run may change
  (copied / 'config.json').write_text(json.dumps(changed))
  assert rundir.opened(copied).eval.batches == 2
  (copied / 'config.json').write_text(json.dumps(fields | {'eval': fields['eval'] | {'batches': 'all'}}))
  assert "config.json: eval.batches='all': expected a whole number" in mistake('eval', copied)


def test_a_run_that_another_process_trains_is_left_alone(copied, trained):
  before = {file: file.read_bytes() for file in copied.rglob('*') if file.is_file()}
  with owner.hold(copied):
    before[copied / owner.FILE] = (copied / owner.FILE).read_bytes()
    with pytest.raises(errors.UserError, match='is in use by process'):
      loop.train(config(trained[1], **{'train.steps': 6}), copied, 'tiny')
    assert {file: file.read_bytes() for file in copied.rglob('*') if file.is_file()} == before


def test_no_line_is_added_to_records_that_cannot_be_read(copied, mistake):
  (copied / 'evals.jsonl').write_text('{"step": 4}\n')
  assert 'evals.jsonl: line 1 has no field' in mistake('eval', copied, '--sweep', f'{FIELD}=1')
  assert (copied / 'evals.jsonl').read_text() == '{"step": 4}\n'


def test_report_leaves_a_bad_run_out_and_writes_through_no_link(copied, tmp_path, command, mistake):
  other, bad = tmp_path / 'other', tmp_path / 'bad'
  other.write_text('precious')
  shutil.copytree(copied, bad)
  (bad / 'metrics.jsonl').write_text('[]\n')
  assert 'metrics.jsonl: line 1 holds a list' in mistake('report', bad, '--routed', '0')
  (copied / 'report.html').symlink_to(other)
  code, _, err = command('report', copied, bad, '--routed', '0', '-o', copied / 'report.html')
  assert code == 0 and err.count('is left out') == 1
  assert other.read_text() == 'precious' and '<html' in (copied / 'report.html').read_text()
  (copied / 'plots').symlink_to(tmp_path)
  assert 'plots is a link' in mistake('plot', copied)
  assert not list(tmp_path.glob('*.png'))
