"""Several processes on one machine train, stop, die and go on as one process with as many devices does.

One process with two devices is the reference. On it and on two processes with one device each, programs are
the same but for the wires, so numbers are compared bit for bit; other meshes to 1e-5.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import xla
from tests.hosts import tiny_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 240
# One sparse layer: what takes the time is to compile it in every process.
SMALL = ('--config.model.layers=(("m",1),)', '--config.model.d_model=8', '--config.model.head_dim=4')
GONE = re.compile(r'stmoe: (process \d|another process) of this job is gone( \(.*\))?, so this one stops; .*')

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope='module')
def reference(corpus, tmp_path_factory):
  """A run of one process with two devices."""
  path = tmp_path_factory.mktemp('reference') / 'run'
  one(corpus, path)
  return path


class Ended:
  """A process of a job that has ended: its exit code and what it wrote."""

  def __init__(self, process):
    self.out, self.err = process.communicate(timeout=TIMEOUT)
    self.code = process.returncode


def start(words, devices):
  """Returns the running process of a command line with so many devices; it may hear Ctrl-C."""
  environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=xla.flags(devices), GLIBC_TUNABLES='')
  hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
  return subprocess.Popen([sys.executable, tiny_job.__file__, *map(str, words)], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear)


def job(words, before=(), processes=2, devices=1, hanging=None):
  """Returns the Ended processes of a job; `before` are flags of tiny_job.py for each.

  The process `hanging` never ends by itself; it is killed when the others have ended.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  flags = lambda i: ('--coordinator', address, '--processes', processes, '--process', i, '--heartbeat', 10)
  running = []
  try:
    for i in range(processes):
      running.append(start([*dict(before).get(i, ()), *words, *flags(i)], devices))
    ended = {i: Ended(process) for i, process in enumerate(running) if i != hanging}
    if hanging is not None:
      running[hanging].kill()
      ended[hanging] = Ended(running[hanging])
    return [ended[i] for i in range(processes)]
  finally:
    for process in running:
      process.kill()


def train(corpus, path, *words):
  return ['train', corpus, '--workdir', path, *SMALL, *words]


def one(corpus, path, *words, devices=2):
  """Trains in one process and returns it."""
  ended = Ended(start(train(corpus, path, *words), devices))
  assert ended.code == 0, ended.err
  return ended


def lines(path):
  """Returns metrics.jsonl without the times."""
  found = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'time'} for line in found]


def arrays(path, step):
  return json.loads((path / 'checkpoints' / str(step) / 'meta' / 'metadata').read_text())['arrays']


def saved(path):
  return sorted(int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit())


def assert_same(path, reference):
  assert lines(path) == lines(reference)
  assert arrays(path, 12) == arrays(reference, 12)
  mine, theirs = (dict(np.load(p / 'router_stats' / '12.npz')) for p in (path, reference))
  assert mine.keys() == theirs.keys()
  np.testing.assert_array_equal(mine['moe_load'], theirs['moe_load'])
  assert (path / 'DONE').exists()


def assert_close(path, reference, tolerance=1e-5):
  mine, theirs = lines(path), lines(reference)
  assert [line['step'] for line in mine] == [line['step'] for line in theirs]
  for a, b in zip(mine, theirs):
    assert a.keys() == b.keys()
    for name in a:
      where = f'{name} of step {a["step"]}'
      np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=1e-7, err_msg=where)


def assert_gone(ended):
  """A process that stops because another one is gone says so in its last and only unusual line."""
  assert ended.code == 75, ended.err
  assert GONE.fullmatch(ended.err.splitlines()[-1]) and len(GONE.findall(ended.err)) == 1, ended.err
  assert 'Traceback' not in ended.err and 'stack trace' not in ended.err, ended.err


@pytest.mark.slow
def test_a_job_whose_process_dies_goes_on_as_one_process(corpus, reference, tmp_path):
  path = tmp_path / 'run'
  zero, other = job(train(corpus, path), {0: ('--kill', 'step:6')})
  assert zero.code == 128 + signal.SIGKILL, zero.err
  assert_gone(other)
  assert 'continuing from the checkpoint of step 4' in one(corpus, path).err
  assert_same(path, reference)


@pytest.mark.slow
def test_a_job_that_is_killed_stopped_and_halved_writes_what_one_process_writes(corpus, reference, tmp_path):
  path = tmp_path / 'run'
  # Process 0 dies after step 6: the checkpoint of step 4 is there.
  zero, other = job(train(corpus, path), {0: ('--kill', 'step:6')})
  assert zero.code == 128 + signal.SIGKILL, zero.err
  assert_gone(other)
  assert saved(path) == [4]
  # Again; process 1 alone gets SIGTERM before step 6. Both stop two steps later, and save.
  zero, other = job(train(corpus, path), {1: ('--signal', 'SIGTERM:5')})
  assert (zero.code, other.code) == (85, 85), zero.err + other.err
  assert 'continuing from the checkpoint of step 4' in zero.err and 'stopped after step 8' in zero.err
  assert saved(path) == [4, 8] and not (path / 'DONE').exists()
  # Only process 0 speaks; the other one only says that it heard.
  assert other.err.split() == ['SIGTERM:', 'saving', 'after', 'this', 'step'] and not other.out
  # Half as many processes finish it.
  assert 'continuing from the checkpoint of step 8' in one(corpus, path).err
  assert_same(path, reference)


@pytest.mark.slow
def test_a_job_is_one_process_bit_for_bit_and_evaluates_as_one(corpus, reference, tmp_path):
  path = tmp_path / 'run'
  ended = job(train(corpus, path, f'--config.data.cache_dir={tmp_path}/cache'))
  assert [e.code for e in ended] == [0, 0], ended[0].err + ended[1].err
  assert_same(path, reference)
  assert 'caching text train' in ended[0].err and not ended[1].err
  assert len(list((path / 'tensorboard').glob('events*'))) == 1
  assert json.loads((path / 'env.json').read_text())['devices']['processes'] == 2
  again = job(train(corpus, path))
  assert [e.code for e in again] == [0, 0]
  assert 'is finished: 12 steps' in again[0].out and not again[1].out

  alone = Ended(start(['eval', path, '--json'], 2))
  zero, other = job(['eval', path, '--json'])
  assert (zero.code, other.code) == (0, 0), zero.err
  assert json.loads(zero.out) == json.loads(alone.out) and not other.out
  job(['eval', path, '--sweep', 'eval.batches=1,2'])
  assert len((path / 'evals.jsonl').read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize('processes,devices,mesh', [
    (2, 1, (1, 1, 2)), (2, 2, (2, 1, 2)), (2, 2, (1, 1, 4)), (4, 1, (2, 2, 1)), (4, 1, (1, 2, 2)),
    (4, 2, (-1, 1, 1))], ids=str)
def test_any_mesh_over_any_processes_trains_as_one(corpus, reference, tmp_path, processes, devices, mesh):
  path = tmp_path / 'run'
  sizes = [f'--config.mesh.{axis}={n}' for axis, n in zip(('data', 'expert', 'model'), mesh)]
  ended = job(train(corpus, path, *sizes), processes=processes, devices=devices)
  assert [e.code for e in ended] == [0] * processes, ended[0].err
  assert_close(path, reference)


@pytest.mark.slow
def test_four_processes_go_on_as_two_on_another_mesh(corpus, reference, tmp_path):
  path = tmp_path / 'run'
  ended = job(train(corpus, path, '--config.mesh.model=2'), {2: ('--kill', 'step:9')}, processes=4)
  assert ended[2].code == 128 + signal.SIGKILL
  for i in (0, 1, 3):
    assert_gone(ended[i])
  assert saved(path) == [4, 8]
  ended = job(train(corpus, path, '--config.mesh.expert=2'), processes=2)
  assert [e.code for e in ended] == [0, 0], ended[0].err
  assert 'continuing from the checkpoint of step 8' in ended[0].err
  assert_close(path, reference)


@pytest.mark.slow
@pytest.mark.parametrize('place', ['write:4', 'write:8', 'step:1'])
@pytest.mark.parametrize('victim', [0, 1])
def test_a_kill_anywhere_changes_nothing(corpus, reference, tmp_path, place, victim):
  path = tmp_path / 'run'
  ended = job(train(corpus, path), {victim: ('--kill', place)})
  if place.startswith('write') and victim:           # process 0 renames; the other one has nothing to rename
    assert [e.code for e in ended] == [0, 0]
  else:
    assert ended[victim].code == 128 + signal.SIGKILL
    assert_gone(ended[1 - victim])
    assert [e.code for e in job(train(corpus, path))] == [0, 0]
  assert_same(path, reference)


@pytest.mark.slow
@pytest.mark.parametrize('name,code', [('SIGINT', 130), ('SIGTERM', 85)])
@pytest.mark.parametrize('step', [0, 11])
def test_a_signal_before_the_first_and_at_the_last_step(corpus, reference, tmp_path, name, code, step):
  path = tmp_path / 'run'
  ended = job(train(corpus, path), {0: ('--signal', f'{name}:{step}')})
  assert [e.code for e in ended] == [code, code], ended[0].err + ended[1].err
  assert saved(path)[-1] == (3 if step == 0 else 12)
  assert [e.code for e in job(train(corpus, path))] == [0, 0]
  assert_same(path, reference)


@pytest.mark.slow
def test_one_that_hangs_counts_as_dead_after_the_heartbeat(corpus, tmp_path):
  path = tmp_path / 'run'
  zero, _ = job(train(corpus, path), {1: ('--signal', 'SIGSTOP:3')}, hanging=1)
  assert_gone(zero)
  assert 'process 1 of' in zero.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize('blind', [(1,), (0, 1)], ids=str)
def test_a_checkpoint_that_a_process_cannot_read_is_set_aside(corpus, reference, tmp_path, blind):
  path = tmp_path / 'run'
  ended = job(train(corpus, path), {0: ('--signal', 'SIGTERM:7')})
  assert [e.code for e in ended] == [85, 85] and saved(path) == [8, 10]
  zero, other = job(train(corpus, path), {i: ('--break', 10) for i in blind})
  if blind == (1,):                                  # the others wait for it: only to stop all is certain
    assert other.code == 2 and 'process 1 cannot read checkpoint 10' in other.err.splitlines()[-1]
    assert_gone(zero)
    assert saved(path) == [8] and (path / 'unreadable' / '10').is_dir()
    zero, other = job(train(corpus, path))
  assert (zero.code, other.code) == (0, 0), zero.err + other.err
  assert_same(path, reference)


@pytest.mark.slow
def test_mistakes_of_one_process_end_all_with_a_line(corpus, tmp_path):
  path = tmp_path / 'run'
  ended = job(train(corpus, path, '--config.mesh.data=3'))
  assert [e.code for e in ended] == [2, 2]
  assert all(e.err.splitlines()[-1].startswith('stmoe: mesh ') for e in ended) and not path.exists()
  # A run directory of another experiment.
  one(corpus, path, '--config.train.steps=1')
  ended = job(train(corpus, path, '--config.seed=1'))
  assert [e.code for e in ended] == [2, 2]
  assert all('holds another experiment: seed is 0 there and 1 here' in e.err for e in ended)
  # Another configuration on one process.
  elsewhere = tmp_path / 'file'
  elsewhere.write_text('')
  ended = job(train(corpus, path), {1: ('--set', f'data.cache_dir={elsewhere}/cache')})
  assert [e.code for e in ended] == [2, 2]
  assert all('process 1 has another configuration' in e.err for e in ended)
