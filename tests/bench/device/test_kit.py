"""The kit: what it does first, what it does not lose, and what a failure costs."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stmoe import errors
from stmoe.analysis import flops
from stmoe.bench.device import __main__ as command
from stmoe.bench.device import compilers
from stmoe.bench.device import pending
from stmoe.bench.device import kit
from stmoe.bench.device import measured
from stmoe.bench.device import models
from stmoe.bench.device import readme
from stmoe.bench.device import worker
from stmoe.bench.device.pieces import layers

FOREVER = 1e12


def ready(name, rows=(), seconds=1.0):
  """A Job of one program; rows may be an error."""
  def finish():
    if isinstance(rows, Exception):
      raise rows
    return list(rows)
  return pending.Job(name, seconds, lambda submit: ([submit(lambda: None)], finish))


def test_a_failing_job_is_a_line_and_the_next_is_done():
  told = []
  jobs = [ready('a 1', MemoryError('out of\nmemory')), ready('a 2', [dict(x=1)]),
          ready('a 3', seconds=2 * FOREVER)]
  jobs.insert(0, pending.Job('a 0', 1.0, lambda submit: 1 / 0))
  worker.work({one: one.seconds for one in jobs}, told.append, time.time() + FOREVER, threads=2)
  ends = {line['end']: line for line in told if 'end' in line}
  assert ends['a 0']['state'] == ends['a 1']['state'] == 'failed'
  assert ends['a 1']['error'] == 'MemoryError: out of memory'
  assert ends['a 2']['rows'] == [dict(x=1)] and dict(skip='a 3') in told and 'a 3' not in ends


def test_nothing_compiles_while_something_is_timed():
  computing, seen = [], []

  def make():
    computing.append(1)
    time.sleep(0.01)
    computing.pop()
  with compilers.Compilers(4) as pool:
    futures = [pool.submit(make) for _ in range(12)]
    time.sleep(0.005)
    for _ in range(3):
      with pool.quiet():
        seen += [list(computing)]
        futures.append(pool.submit(make))                            # this one has to wait
        time.sleep(0.005)
        seen += [list(computing)]
    assert [future.result() for future in futures] == [None] * 15    # they go on after it
  assert seen == [[]] * 6


@pytest.mark.parametrize('patience, order', [(FOREVER, ['a late', 'a soon']), (0.0, ['a soon', 'a late'])])
def test_jobs_come_in_order_unless_programs_take_long(patience, order):
  told, program = [], concurrent.futures.Future()
  late = pending.Job('a late', 1.0, lambda submit: ([program], list))
  soon = pending.Job('a soon', 1.0, lambda submit: ([submit(lambda: None)], list))
  threading.Timer(0.5, program.set_result, [None]).start()
  worker.work({late: 1.0, soon: 1.0}, told.append, time.time() + FOREVER, 2, patience)
  assert [line['end'] for line in told if 'end' in line] == order


def test_all_that_is_ready_is_timed_in_one_silence(monkeypatch):
  silences, quiet = [], compilers.Compilers.quiet
  monkeypatch.setattr(compilers.Compilers, 'quiet', lambda pool: silences.append(1) or quiet(pool))
  program = concurrent.futures.Future()
  jobs = [pending.Job('a 0', 1.0, lambda submit: ([program], list)), *(ready(f'a {n}') for n in (1, 2, 3))]
  threading.Timer(0.3, program.set_result, [None]).start()
  worker.work({one: 1.0 for one in jobs}, lambda line: None, time.time() + FOREVER, 2)
  assert len(silences) == 1


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
  assert [again.expected(one) for one in jobs] == [2.0, 3.0, 14.0, 5.0]
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
        raise ValueError(f'ended with {code}')
      return [dict(code=code, text=text)]
    made = lambda name, text: pending.Command(name, 1.0, ('-c', text), read)
    return [made('a quick', 'print(1, end="")'), made('a fails', 'raise SystemExit(3)'),
            made('a slow', 'import time; time.sleep(60)'), made('a last', 'print(2, end="")')]
  monkeypatch.setattr(pending, 'of', of)


def test_a_command_that_hangs_is_stopped_and_the_rest_is_done(commands, monkeypatch, tmp_path):
  monkeypatch.setattr(kit, 'LEAST', 0.5)
  monkeypatch.setattr(kit, 'PATIENCE', 0.5)
  one = kit.Kit(tmp_path, 100, note=lambda text: None)
  assert one.run() == ['a slow', 'a fails']                          # failed ones come last
  states = {name: record['state'] for name, record in one.measured.records.items()}
  assert states == {'a quick': 'done', 'a fails': 'failed', 'a slow': 'stopped', 'a last': 'done'}
  assert one.measured.records['a last']['rows'] == [dict(code=0, text='2')]
  assert one.measured.records['a fails']['error'] == 'ended with 3'
  assert kit.Kit(tmp_path, 100, only=lambda name: name == 'a quick').run() == []


def test_sigterm_ends_the_job_at_hand_and_leaves_a_page(commands, tmp_path, capsys):
  after = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
  after.start()
  assert command.main(['--out', str(tmp_path), '--only', 'a slow']) == 128 + signal.SIGTERM
  after.join()
  records = measured.Measured(tmp_path).records
  assert records['a slow']['state'] == 'stopped' and records['a slow']['seconds'] < 30
  assert (tmp_path / 'README.md').is_file() and '1 of 1 jobs are left' in capsys.readouterr().out


def test_a_worker_that_cannot_begin_is_a_line(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(pending, 'of', lambda dry: [ready('a 1')])
  monkeypatch.setattr(kit, 'ENVIRONMENT', dict(PYTHONHOME='/nowhere'))
  assert command.main(['--out', str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert 'ended with 1 before its first job; see' in error and error.count('\n') == 1


def test_what_does_not_fit_waits_for_the_next_call(commands, tmp_path):
  one = kit.Kit(tmp_path, 2, note=lambda text: None)
  assert [fits for *_, fits in one.plan()] == [True, False, False, False]


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


def test_without_a_gpu_the_kit_says_so(tmp_path):
  one = kit.Kit(tmp_path, 100, note=lambda text: None)
  with pytest.raises(errors.UserError, match='no GPU here; nearest: --dry'):
    one._hear(dict(machine=dict(device='cpu', platform='cpu', versions={})), {})


def test_pieces_come_in_order_of_worth():
  order = list(dict.fromkeys(pending.piece(one.name) for one in pending.of()))
  assert order == ['tests', 'training', 'layers', 'products', 'decoding', 'tuning', 'sweep']
  names = [one.name for one in pending.of()]
  assert len(set(names)) == len(names)


def dry(names, tmp_path):
  """Does the dry run's jobs of these pieces in this process; returns what was measured."""
  found, told = measured.Measured(tmp_path), []
  jobs = {one: 1.0 for one in pending.of(dry=True) if pending.piece(one.name) in names}
  found.on(worker.machine())
  worker.work(jobs, told.append, time.time() + FOREVER, threads=2)
  for line in told:
    if 'end' in line:
      assert line['state'] == 'done', line
      found.add(line['end'], line['state'], line['seconds'], 'now', line['rows'])
  assert {pending.piece(name) for name in found.records} == set(names)
  return measured.Measured(tmp_path)


def test_dry_run_of_what_compiles_fast(tmp_path, monkeypatch):
  """From programs to the page, on tiny shapes; the slow form has all of it."""
  monkeypatch.setattr(layers, 'EXECUTORS', ('gather',))
  found = dry(('layers', 'products'), tmp_path)
  first, lost = found.records['layers S3']['rows']
  assert first['train']['ratio'] > 0 and first['drop_rate'] < 0.5 and 'error' in lost      # no PyTorch here
  text = readme.text(found)
  assert '| S3 | gather | 1.25 |' in text and '| tiny | combine |' in text


@pytest.mark.slow
def test_dry_run_of_the_rest(tmp_path):
  found = dry(('training', 'layers', 'decoding'), tmp_path)
  [row] = found.records['training tiny']['rows']
  assert row['sparse']['tokens_per_s'] > 0 and row['dense']['peak_gb'] > 0 and row['ratio'] > 0
  text = readme.text(found)
  for cells in ('| tiny | 1 |', '| S3 | pallas | dropless | 0.0% |', '| 1 | 2 |'):
    assert cells in text


@pytest.mark.slow
def test_twins_have_equal_flops_and_published_sizes():
  sizes = {'Switch-Base': 7.4e9, 'OLMoE-1B-7B': 6.92e9, 'DeepSeekMoE-16B': 16.4e9}
  for name, pair in models.pairs(dry=False).items():
    sparse, dense = pair.sparse(pair.layers), pair.dense(pair.layers)
    work = [flops.active_per_token(c)['train'] for c in (sparse, dense)]
    assert 1 <= work[0] / work[1] < 1.01, name                       # the router's products
    assert flops.parameters(sparse)['total'] == pytest.approx(sizes[name], rel=0.01)
    one, two = (models.cut(pair, room) for room in (None, 80e9))
    assert one == pair.least < two <= pair.layers


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
