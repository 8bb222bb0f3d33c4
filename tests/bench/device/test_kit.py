"""The kit: what it does first, what it does not lose, and what a failure costs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from stmoe import errors
from stmoe.bench.device import __main__ as command
from stmoe.bench.device import pending
from stmoe.bench.device import kit
from stmoe.bench.device import measured
from stmoe.bench.device import readme
from stmoe.bench.device import running
from stmoe.bench.device import worker
from stmoe.bench.device.pieces import tests

FOREVER = 1e12


# The process of a job 'a KIND N' of these tests: compiles for N seconds, is timed for 0.3, and says when.
WORKER = """
import json, os, sys, time
tell = lambda **what: os.write(int(sys.argv[2]), (json.dumps(what) + chr(10)).encode())
_, kind, seconds = sys.argv[-1].split()
with open('begun', 'a') as log:
  print(kind, file=log)
tell(machine=dict(device='GPU', platform='cpu' if kind == 'cpu' else 'gpu', cpus=1, versions={}))
until, busy = time.time() + float(seconds), []
while time.time() < until:
  time.sleep(0.005)
  busy.append(time.time())
if kind == 'dies' or kind == 'shy' and not os.path.exists('tried'):
  open('tried', 'w').close()
  sys.exit(7)
tell(ready=0)
sys.stdin.readline()
if kind == 'hangs':
  time.sleep(60)
began = time.time()
time.sleep(0.3)
rows = [dict(busy=busy, timed=[began, time.time()])]
if kind == 'large':
  rows.append(dict(error='OutOfMemoryError: CUDA out of memory.'))
tell(state='done', seconds=0.3, rows=rows)
"""


@pytest.fixture
def doing(monkeypatch, tmp_path):
  """Function of names that returns (the Kit after it did these jobs, the names of those left)."""
  def do(*names, **constants):
    monkeypatch.setattr(running, 'WORKER', ('-c', WORKER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pending, 'of', lambda dry: [pending.Job(name, 0.5, None) for name in names])
    for name, value in (dict(PROCESSES=3) | constants).items():
      monkeypatch.setattr(kit, name, value)
    said = []
    one = kit.Kit(tmp_path, 60, note=said.append)
    one.said = said
    return one, one.run()
  return do


def _begun(kind):
  return pathlib.Path('begun').read_text().split().count(kind)


def test_what_never_compiles_is_a_line_and_is_not_tried_again(doing):
  one, left = doing('a never 60', 'a runs 0', COMPILING=3.0)
  assert left == ['a never 60'] and _begun('never') == 1
  assert one.measured.records['a never 60']['error'] == 'not compiled after 3 s'
  assert time.time() - one.began < 30


def test_what_hangs_while_it_is_timed_is_not_tried_again(doing):
  one, left = doing('a hangs 0', 'a dies 0', LEAST=1.0, HANGING=0.0)
  assert left == ['a hangs 0', 'a dies 0'] and (_begun('hangs'), _begun('dies')) == (1, 2)


@pytest.mark.parametrize('seconds, timed', [(90.0, None), (110.0, 'later')])
def test_after_a_while_of_a_call_what_is_ready_is_timed(seconds, timed, tmp_path):
  one = kit.Kit(tmp_path, 480)
  one.began -= seconds
  one.running = [types.SimpleNamespace(name=name, is_command=False, stage=stage)
                 for name, stage in (('first', 'compiling'), ('later', 'ready'))]
  assert getattr(one._turn(), 'name', None) == timed


def test_a_failing_job_is_a_line_and_the_next_is_done(doing):
  one, left = doing('a hangs 0', 'a dies 0', 'a runs 0', LEAST=1.0, HANGING=0.0)
  assert left == ['a hangs 0', 'a dies 0']
  errors_of = {name: record.get('error') for name, record in one.measured.records.items()}
  assert errors_of == {'a hangs 0': 'it took too long, and was stopped', 'a dies 0': 'its process ended: 7',
                       'a runs 0': None}


def test_nothing_computes_while_something_is_timed(doing):
  one, left = doing('a one 1.5', 'a two 2.5', 'a three 2.5')
  rows = [record['rows'][0] for record in one.measured.records.values()]
  assert not left and len(rows) == 3
  for row in rows:
    first, last = row['timed']
    others = [other for other in rows if other is not row]
    assert not [at for other in others for at in other['busy'] if first < at < last]
    assert all(end <= first or last <= start for start, end in (other['timed'] for other in others))
  assert any(other['busy'][0] < rows[0]['timed'][0] for other in rows[1:])         # they had begun


def test_what_failed_beside_others_is_tried_alone(doing, tmp_path):
  one, left = doing('a runs 0.5', 'a shy 0')
  assert not left and list(one.measured.records) == ['a shy 0', 'a runs 0.5']


def test_what_had_too_little_memory_beside_others_is_tried_alone(doing):
  one, left = doing('a large 0', 'a runs 0')
  assert not left and _begun('large') == 2                           # and alone that is a result
  said = [text for text in one.said if 'large' in text and '...' not in text]
  assert ['failed, OutOfMemoryError: CUDA out' in text for text in said] == [True, False]
  assert len(one.measured.records['a large 0']['rows']) == 2


def test_rows_stay_of_what_had_too_little_memory_and_no_time_was_left(tmp_path):
  one = kit.Kit(tmp_path, 60, note=lambda text: None)
  one.running = [types.SimpleNamespace(job=pending.Job('a job', 1.0, None), stop=lambda: None)]
  rows = [dict(x=1), dict(error='RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes')]
  one._hear(one.running[0], dict(state='done', seconds=2.0, rows=rows))
  record = measured.Measured(tmp_path).records['a job']
  assert (record['state'], record['rows'], record['error']) == ('failed', rows, rows[1]['error'])


@pytest.mark.parametrize('error, memory', [
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes', True),
    ('RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB', True),
    ('RuntimeError: CUDA_ERROR_OUT_OF_MEMORY', True),
    ('RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 245760, available: 232448', False),
    ('ValueError: PyTorch is not installed', False)])
def test_errors_of_memory_are_known(error, memory):
  assert measured.out_of_memory([dict(x=1), dict(error=error)]) == (error if memory else '')


@pytest.mark.parametrize('patience, order', [
    (FOREVER, ['a late 2', 'a soon 0']), (0.0, ['a soon 0', 'a late 2'])])
def test_jobs_come_in_order_unless_programs_take_long(patience, order, doing):
  one, left = doing('a late 2', 'a soon 0', PATIENCE=patience)
  assert not left and list(one.measured.records) == order


def test_an_error_of_a_job_is_told():
  def told(begin):
    lines = []
    worker.work(pending.Job('a job', 1.0, begin), lines.append, lambda: True, threads=2)
    return lines[-1]
  def fails():
    raise MemoryError('out of\nmemory')
  want = dict(state='failed', error='MemoryError: out of memory')
  assert told(lambda submit: ([submit(lambda: None)], fails)).items() >= want.items()
  assert told(lambda submit: 1 / 0)['error'] == 'ZeroDivisionError: division by zero'


def test_records_stay_and_say_what_is_left(tmp_path):
  found = measured.Measured(tmp_path / 'new')
  found.on(dict(device='NVIDIA H200', versions=dict(jax='1')))
  found.add('layers S3', 'done', 3.0, 'now', [dict(x=float('inf'))])
  found.add('layers S5', 'stopped', 7.0, 'now')
  found.add('layers S4', 'failed', 2.0, 'now', error='a\nb')
  again = measured.Measured(tmp_path / 'new')
  assert again.records['layers S4']['error'] == 'a b'
  assert again.records['layers S3']['versions'] == dict(jax='1')
  jobs = [pending.Job(f'layers {name}', 5.0, None) for name in ('S4', 'S3', 'S5', 'S6')]
  assert [one.name for one in again.missing(jobs)] == ['layers S5', 'layers S6', 'layers S4']
  assert [again.expected(one) for one in jobs] == [5.0, 5.0, 14.0, 5.0]
  with pytest.raises(errors.UserError, match='results of NVIDIA H200, this is cpu; nearest: --out'):
    again.on(dict(device='cpu'))


@pytest.mark.parametrize('content', [
    '{"records": {}}', '{"machine": {}, "records": {"a": {"state": "odd"}}}', '['])
def test_other_files_are_refused(content, tmp_path):
  (tmp_path / measured.FILE).write_text(content)
  with pytest.raises(errors.Damaged):
    measured.Measured(tmp_path)


@pytest.fixture
def commands(monkeypatch):
  """The kit has these commands alone: Python's, whose output is their row."""
  def of(dry):
    def read(code, text):
      if code:
        raise pending.Failed(f'ended with {code}')
      return [dict(code=code, text=text)]
    made = lambda name, text: pending.Command(name, 1.0, ('-c', text), read)
    return [made('a quick', 'print(1, end="")'), made('a fails', 'raise SystemExit(3)'),
            made('a slow', 'import time; time.sleep(60)'), made('a last', 'print(2, end="")')]
  monkeypatch.setattr(pending, 'of', of)


def test_a_command_that_hangs_is_stopped_and_the_rest_is_done(commands, monkeypatch, tmp_path):
  monkeypatch.setattr(kit, 'LEAST', 3.0)
  monkeypatch.setattr(kit, 'HANGING', 0.0)
  one = kit.Kit(tmp_path, 100, note=lambda text: None)
  assert one.run() == ['a fails', 'a slow']
  states = {name: record['state'] for name, record in one.measured.records.items()}
  assert states == {'a quick': 'done', 'a fails': 'failed', 'a slow': 'failed', 'a last': 'done'}
  assert one.measured.records['a last']['rows'] == [dict(code=0, text='2')]
  assert one.measured.records['a fails']['error'] == 'ended with 3'
  assert kit.Kit(tmp_path, 100, only=lambda name: name == 'a quick').run() == []


def _one_command(monkeypatch, text, read):
  monkeypatch.setattr(pending, 'of', lambda dry: [pending.Command('tests kernels', 1.0, ('-c', text), read)])


def test_failing_tests_are_done_again_and_named(monkeypatch, tmp_path, capsys):
  said = '=== short test summary info ===\nFAILED tests/a.py::b - AssertionError\n1 failed, 2 passed in 3.1s'
  _one_command(monkeypatch, f'print({said!r}); raise SystemExit(1)', tests.read)
  assert command.main(['--out', str(tmp_path)]) == 1
  assert 'tests kernels: failed, pytest ended with 1, 1 failed: tests/a.py::b' in capsys.readouterr().out
  assert measured.Measured(tmp_path).records['tests kernels']['rows'] == [
      dict(passed=2, failed=1, names=['tests/a.py::b'])]
  assert '2 passed, 1 failed: tests/a.py::b.' in (tmp_path / 'README.md').read_text()
  _one_command(monkeypatch, 'print("3 passed in 3.1s")', tests.read)
  assert command.main(['--out', str(tmp_path)]) == 0
  assert measured.Measured(tmp_path).state('tests kernels') == 'done'


def test_damaged_files_of_a_command_are_a_line(monkeypatch, tmp_path):
  def read(code, text):
    raise errors.Damaged('DONE', 'is damaged')
  _one_command(monkeypatch, '', read)
  one = kit.Kit(tmp_path, 60, note=lambda text: None)
  assert one.run() == ['tests kernels']
  assert one.measured.records['tests kernels']['error'] == 'Damaged: DONE: is damaged'


def test_sigterm_ends_the_job_at_hand_and_leaves_a_page(commands, tmp_path, capsys):
  after = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
  after.start()
  assert command.main(['--out', str(tmp_path), '--only', 'a slow']) == 128 + signal.SIGTERM
  after.join()
  records = measured.Measured(tmp_path).records
  assert records['a slow']['state'] == 'stopped' and records['a slow']['seconds'] < 30
  assert (tmp_path / 'README.md').is_file() and '1 of 1 jobs are left' in capsys.readouterr().out


def test_a_worker_that_cannot_begin_is_a_line(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(pending, 'of', lambda dry: [pending.Job('a 1', 1.0, None)])
  monkeypatch.setattr(kit, 'ENVIRONMENT', dict(PYTHONHOME='/nowhere'))
  assert command.main(['--out', str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert 'ended with 1 before its first job; see' in error and error.count('\n') == 1


def test_what_does_not_fit_waits_for_the_next_call(commands, tmp_path):
  one = kit.Kit(tmp_path, 2, note=lambda text: None)
  assert [fits for *_, fits in one.plan()] == [True, False, False, False]


@pytest.mark.parametrize('state, seconds, expected', [
    ('stopped', 290.0, 423.0),           # as much as a call has
    ('stopped', 2.0, 12.0),              # by a signal
    ('failed', 0.0, 12.0), ('failed', 360.0, 12.0)])
def test_what_was_not_done_is_begun_in_the_next_call(state, seconds, expected, monkeypatch, tmp_path):
  measured.Measured(tmp_path).add('a job', state, seconds, 'now')
  monkeypatch.setattr(pending, 'of', lambda dry: [pending.Job('a job', 12.0, None)])
  one = kit.Kit(tmp_path, 480)
  assert [rest for _, *rest in one.plan()] == [[state, expected, True]]
  assert one._fits(one.jobs[0])


def test_the_page_of_nothing_has_the_command(tmp_path):
  [path] = readme.write(tmp_path / 'results')
  text = path.read_text()
  assert readme.COMMAND in text and 'Nothing was measured' in text
  assert all(f'## {name}' in text for name in ('Training', 'Layers', 'Products', 'Sweep'))


@pytest.mark.parametrize('words, message', [
    ([], 'needs --out'), (['--out', 'x', '--tables', 'y'], 'needs --out'),
    (['--out', 'x', '--budget', '0'], '--budget 0: expected a whole number'),
    (['--out', 'x', '--only', 'layer S3'], 'like no job')])
def test_mistakes_are_one_line(words, message, capsys):
  assert command.main(words) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_without_a_gpu_the_kit_says_so(doing):
  with pytest.raises(errors.UserError, match='no GPU here; nearest: --dry'):
    doing('a cpu 0')


@pytest.mark.slow
def test_the_command_by_itself_and_stopped(tmp_path):
  words = [sys.executable, '-m', 'stmoe.bench.device', '--dry', '--budget', '900', '--out', str(tmp_path)]
  first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
  for line in first.stdout:
    if 'training tiny ...' in line or 'layers S3 ...' in line:
      break
  first.send_signal(signal.SIGTERM)
  assert first.wait() == 128 + signal.SIGTERM
  records = json.loads((tmp_path / measured.FILE).read_text())['records']
  assert records['tests kernels']['state'] == 'done' and 'stopped' in {r['state'] for r in records.values()}
  again = subprocess.run(words, capture_output=True, text=True)
  assert again.returncode == 0, again.stdout + again.stderr
  after = json.loads((tmp_path / measured.FILE).read_text())['records']
  assert after['tests kernels'] == records['tests kernels']          # not done again
  assert {record['state'] for record in after.values()} == {'done'} and 'sweep dense' in after
