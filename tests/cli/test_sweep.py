"""`stmoe sweep`: what is said, the exit codes, and a report of real runs that were killed on the way."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from stmoe.sweep import origin
from stmoe.sweep import plan
from stmoe.sweep import work
from tests.sweep.conftest import FAKE

FILE = '''"""A sweep."""

from stmoe.sweep import combine


def runs():
  for fields in combine.product(combine.over('train.steps', [2, 3]), combine.over('seed', [0, 1])):
    yield f"steps_{fields['train.steps']}", 'lm/stdlib:smoke', fields
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
  monkeypatch.setattr(work, 'STMOE', FAKE)
  monkeypatch.setenv('STMOE_PROGRESS', 'plain')
  path = tmp_path / 'steps' / 'sweep.py'
  path.parent.mkdir()
  path.write_text(FILE)
  return path


def test_list_and_print_launch_nothing(command, file, tmp_path):
  code, out, _ = command('sweep', file, '--workdir', tmp_path / 'runs', '--list')
  rows = out.splitlines()[2:]
  assert code == 0 and len(rows) == 4 and rows[0].endswith('waiting  seed=0 train.steps=2')
  words = ('--workdir', tmp_path / 'runs', '--launcher', 'print', '--only', '*_3')
  code, out, _ = command('sweep', file, *words)
  first, second = out.splitlines()
  assert code == 0 and first.startswith('stmoe train lm/stdlib:smoke --workdir ')
  assert second.endswith('--config.seed=1 --config.train.steps=3')
  assert not (tmp_path / 'runs').exists()


def test_it_runs_fills_gaps_and_says_when_all_is_done(command, file, tmp_path):
  words = ('sweep', file, '--workdir', tmp_path / 'runs', '--launcher', 'local:jobs=2,poll=0.02')
  code, out, err = command(*words, '--only', 'steps_2')
  assert code == 0 and 'all 2 runs of steps are done' in out and err.count(': done') == 2
  code, out, err = command(*words)
  assert code == 0 and 'all 4 runs' in out and err.count(': running') == 2
  code, out, err = command(*words)
  assert code == 0 and 'all 4 runs' in out and err == ''
  assert origin.recorded(tmp_path / 'runs') == [dict(sweep=str(file), overrides=[])]


def test_a_failed_run_makes_the_exit_code_1(command, file, tmp_path):
  file.write_text(FILE.replace("'seed', [0, 1]", "'seed', [13, 1]"))
  code, out, err = command('sweep', file, '--workdir', tmp_path / 'runs', '--launcher', 'local:poll=0.02')
  assert code == 1 and '2 of 4 runs failed: steps_2-' in err and 'all' not in out
  assert err.count('  | bad luck') == 2 and err.count(': done') == 2


@pytest.mark.parametrize('change, words', [
    (('lm/stdlib:smoke', 'lm/stdlbi'), ['run 1 (steps_2)', "'lm/stdlbi'; nearest: lm/stdlib"]),
    (("'seed', [0", "'sed', [0"), ['config.sed does not exist']),
    (('[2, 3]', "[2, 'x']"), ['run 3 (steps_x)', 'train.steps=x', 'a whole number'])])
def test_a_sweep_with_a_mistake_launches_nothing(mistake, file, tmp_path, change, words):
  file.write_text(FILE.replace(*change))
  line = mistake('sweep', file, '--workdir', tmp_path / 'runs')
  assert all(word in line for word in words), line
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('words, expected', [
    (['nothing_like_it'], 'no experiment of experiments/ with a sweep.py'),
    (['FILE', '--launcher', 'locl'], "no launcher is called 'locl'; nearest: local"),
    (['FILE', '--launcher', 'local:job=2'], "no field 'job'; nearest: jobs"),
    (['FILE', '--launcher', 'local:jobs=two'], 'jobs=two: expected a whole number'),
    (['FILE', '--only', 'x'], "no run like 'x'"),
    (['FILE', '--config.train.stps=1'], 'config.train.stps does not exist; nearest: config.train.steps'),
    (['FILE', '--report'], 'is done yet')])
def test_mistakes(mistake, file, tmp_path, words, expected):
  words = [file if word == 'FILE' else word for word in words]
  assert expected in mistake('sweep', *words, '--workdir', tmp_path / 'runs')


STARTS = '''"""One dense run after which another starts."""


def runs():
  dense = ('dense', 'lm/stdlib:smoke', {'train.steps': 2, 'seed': SEED})
  yield dict(name='sparse', experiment='lm/stdlib:smoke', overrides={'train.steps': 3}, start={'run': dense})
  yield dense
'''


@pytest.mark.parametrize('seed, code', [(0, 0), (13, 1)])
def test_a_run_waits_for_the_one_it_starts_from(command, file, tmp_path, seed, code):
  file.write_text(STARTS.replace('SEED', str(seed)))
  words = ('sweep', file, '--workdir', tmp_path / 'runs')
  sparse, dense = command(*words, '--launcher', 'print')[1].splitlines()[::-1]
  assert dense.startswith('stmoe train ')
  assert sparse.startswith('stmoe upcycle ') and ' && stmoe train ' in sparse
  got, _, err = command(*words, '--launcher', 'local:jobs=2,poll=0.02')
  assert got == code
  order = [line.partition(':')[0].partition('-')[0] for line in err.splitlines() if ': running' in line]
  assert order == (['dense', 'sparse'] if code == 0 else ['dense'])
  assert ('is not started: it needs dense-' in err) == bool(code)


REPORT = '''"""A report."""

from stmoe.analysis import canvas
from stmoe.analysis import verdict


def report(results):
  losses = lambda name: {one.seed: one.row['eval/loss'] for one in results if one.name == name}
  return [verdict.exceeds('more steps, less loss', losses('steps_8'), losses('steps_4'))]


def figures(results):
  figure, axes = canvas.new(1, 1, 4, 3)
  axes[0][0].plot([one.evaluated('eval.draws', 1, 'eval/loss') for one in results])
  return {'losses': figure}
'''
REAL = '''"""Four tiny runs."""

from stmoe.sweep import combine

TINY = {'model.d_model': 16, 'model.num_heads': 2, 'model.head_dim': 8, 'blocks.d.d_ff': 32,
        'data.length': 32, 'blocks.m.experts.d_ff': 32, 'train.log_every': 1, 'train.batch_size': 8,
        'eval.batches': 1, 'eval.every': 100, 'checkpoint.every': 100, 'schedule.warmup_steps': 1,
        'data.task': 'text'}


def runs():
  for fields in combine.product(combine.over('train.steps', [4, 8]), combine.over('seed', [0, 1])):
    yield dict(name=f"steps_{fields['train.steps']}", experiment='lm/stdlib:smoke', overrides=TINY | fields,
               evaluations={'eval.draws': [1]})
'''


@pytest.mark.slow
def test_real_runs_killed_and_continued_and_their_report(tmp_path, command, monkeypatch):
  text = tmp_path / 'text.txt'
  text.write_text(''.join(f'{i} squared is {i * i}; half of it is {i * i / 2}.\n' for i in range(400)))
  file = tmp_path / 'steps' / 'sweep.py'
  file.parent.mkdir()
  file.write_text(REAL)
  file.with_name('report.py').write_text(REPORT)
  words = ['sweep', str(file), '--workdir', str(tmp_path / 'runs'), f'--config.data.files={text}',
           f'--config.data.cache_dir={tmp_path / "cache"}']
  found = plan.load(str(file), words[4:], workdir=tmp_path / 'runs').runs
  process = subprocess.Popen([sys.executable, '-m', 'stmoe.cli.main', *words], start_new_session=True)
  while not plan.is_done(found[0]):
    assert process.poll() is None
    time.sleep(0.1)
  time.sleep(3)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert not all(map(plan.is_done, found))
  code, out, _ = command(*words, '--launcher', 'local:jobs=2')
  assert code == 0 and 'all 4 runs of steps are done' in out
  assert (found[0].workdir / work.LOG).read_text().count('parameters,') == 1

  code, out, _ = command(*words, '--report', tmp_path / 'out')
  assert code == 0 and 'more steps, less loss' in out and '2 seeds' in out
  with (tmp_path / 'out' / 'results.csv').open() as stream:
    rows = list(csv.DictReader(stream))
  assert [row['train.steps'] for row in rows] == ['4', '4', '8', '8'] == [row['step'] for row in rows]
  assert [row['seed'] for row in rows] == ['0', '1', '0', '1'] and len({row['id'] for row in rows}) == 4
  assert int(rows[0]['parameters']) > int(rows[0]['active']) > 0 and float(rows[0]['flops_per_token']) > 0
  assert {row['eval/loss'] for row in rows} == {str(plan.done(run)['eval/loss']) for run in found}
  facts = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert facts['seeds'] == [0, 1] and facts['runs'] == 4 and facts['cpus'] == [str(os.cpu_count())]
  told = json.loads((tmp_path / 'out' / 'verdict.json').read_text())
  assert told['of'] == 4 and told['verdicts'][0]['answer'] in ('holds', 'does not hold', 'not decided')
  assert (tmp_path / 'out' / 'losses.png').is_file()
  from pyarrow import parquet
  assert parquet.read_table(pathlib.Path(tmp_path / 'out' / 'results.parquet')).num_rows == 4
