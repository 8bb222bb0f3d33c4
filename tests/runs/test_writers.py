"""Services that show a run's metrics: no step twice and none missing, however the run was killed.

The real packages are used, offline, where they are installed (extras wandb, trackio, mlflow).
"""

import importlib.util
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys

import ml_collections
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.runs import writers
from tests.runs import killed_writer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(path, step, *names, say=pytest.fail):
  return killed_writer.start(path, step, *names, say=say)


def kept(path, name):
  """What writers.json in `path` has of a writer."""
  return json.loads((path / 'writers.json').read_text())[name]


def killed_and_continued(path, name, moment):
  """The ids before and after the kill of a run that ends with step 8."""
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  environment.pop('WANDB_SERVICE', None)                               # of this process, which is not killed
  killed = subprocess.run([sys.executable, killed_writer.__file__, str(path), name, moment], env=environment,
                          check=False, capture_output=True, text=True)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  before = kept(path, name)
  assert max(before['holds'], 0) == dict(opened=0, told=6, sent=4)[moment]
  step = dict(opened=2, told=4, sent=6)[moment]                            # of the newest checkpoint
  opened = start(path, step, name)
  killed_writer.log(path, opened, *range(step + 1, 9))
  opened[1].finish({'step': 8, 'loss/ce': 4.0, 'bad': None})
  opened[1].close()
  return before['id'], kept(path, name)['id']


moments = pytest.mark.parametrize('moment', ['opened', 'told', 'sent'])
CURVE = [(2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)]
LOADS = [(3, 0.5), (6, 0.5), (8, 0.5)]                                 # of the first expert


def events(folder):
  """The events in TensorBoard's files, in the order in which TensorBoard reads the files."""
  from tensorboardX.proto import event_pb2
  for file in sorted(folder.glob('events*')):
    content = file.read_bytes()
    while content:
      length, = struct.unpack('<Q', content[:8])
      yield event_pb2.Event.FromString(content[12:12 + length])
      content = content[16 + length:]


def test_tensorboard_has_every_line_before_the_next_step(tmp_path):
  killed_writer.log(tmp_path, start(tmp_path, 0, 'tensorboard'), 2, 4, 6)    # neither finished nor closed
  values = [(event.step, value.simple_value) for event in events(tmp_path / 'tensorboard')
            for value in event.summary.value if value.tag == 'loss/ce']
  assert values == CURVE[:3]


@moments
def test_tensorboard_takes_back_the_steps_that_a_killed_run_did_again(tmp_path, moment):
  killed_and_continued(tmp_path, 'tensorboard', moment)
  curve, loads, speed, histograms, pictures = {}, {}, set(), set(), set()
  for event in events(tmp_path / 'tensorboard'):
    if event.HasField('session_log'):                                # START: later steps are void
      curve = {step: value for step, value in curve.items() if step < event.step}
      loads = {step: value for step, value in loads.items() if step < event.step}
    for value in event.summary.value:
      if value.tag == 'loss/ce':
        assert event.step not in curve
        curve[event.step] = value.simple_value
      if value.tag == 'load/sparse0':
        assert event.step not in loads
        loads[event.step] = value.histo.bucket[0]
      times = value.tag in ('time', 'tokens_per_s')
      speed |= {(event.step, value.tag, value.simple_value)} if times else set()
      histograms |= {value.tag} if value.HasField('histo') else set()
      pictures |= {value.tag} if value.HasField('image') else set()
  assert sorted(curve.items()) == CURVE
  assert sorted(loads.items()) == LOADS
  assert {(8, 'time', 8.0), (8, 'tokens_per_s', 9.0)} <= speed
  assert histograms == {'load/sparse0', 'load/sparse1'}
  assert pictures == {'load_by_step/sparse0', 'load_by_step/sparse1'}
  hyper = [value.tag for event in events(tmp_path / 'tensorboard' / 'hparams')
           for value in event.summary.value]
  assert '_hparams_/session_start_info' in hyper and 'loss/ce' in hyper


def real(name):
  return pytest.mark.skipif(not importlib.util.find_spec(name), reason=f'{name} is not installed')


@real('mlflow')
@moments
def test_mlflow(tmp_path, monkeypatch, moment):
  import mlflow
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  ids = set(killed_and_continued(tmp_path, 'mlflow', moment))
  client = mlflow.MlflowClient()
  run, = client.search_runs([client.get_experiment_by_name('stmoe').experiment_id])
  assert {run.info.run_id} == ids and run.info.status == 'FINISHED'
  assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, 'loss/ce')] == CURVE
  assert run.data.params['model.layers'] == "(('m', 1),)"
  assert len(client.list_artifacts(run.info.run_id, 'router_stats')) == 3


@real('mlflow')
def test_mlflow_gets_the_rest_of_a_line_that_was_cut(tmp_path, monkeypatch):
  import mlflow
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  killed_writer.log(tmp_path, start(tmp_path, 0, 'mlflow'), 2, 4)
  client, run = mlflow.MlflowClient(), kept(tmp_path, 'mlflow')['id']
  client.log_metric(run, 'loss/ce', 3.0, step=6)                           # and no other metric of step 6
  killed_writer.log(tmp_path, start(tmp_path, 4, 'mlflow'), 6, 8)
  for name in ('loss/ce', 'time'):
    assert [m.step for m in client.get_metric_history(run, name)] == [2, 4, 6, 8]


@real('trackio')
@moments
@pytest.mark.parametrize('mode', ['sqlite', 'jsonl'])                      # jsonl: on a network's file system
def test_trackio(tmp_path, monkeypatch, moment, mode):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'store'))
  monkeypatch.setenv('TRACKIO_STORAGE_MODE', mode)
  from trackio import fragments
  from trackio import sqlite_storage
  from trackio import utils
  for module in (sqlite_storage, utils):
    monkeypatch.setattr(module, 'TRACKIO_DIR', tmp_path / 'store')
  name, later = killed_and_continued(tmp_path, 'trackio', moment)
  fragments.import_inbox_dir()                                             # as the dashboard does
  rows = sqlite_storage.SQLiteStorage.get_logs('stmoe', name)
  assert later == name
  assert [(row['step'], row['loss/ce']) for row in rows if 'loss/ce' in row] == CURVE
  assert [(row['step'], row['load/sparse0/0']) for row in rows if 'load/sparse0/0' in row] == LOADS
  assert [row['seconds'] for row in rows if 'seconds' in row] == [step for step, _ in CURVE]


@real('wandb')
@moments
def test_wandb_offline(tmp_path, monkeypatch, moment):
  import wandb
  monkeypatch.setenv('WANDB_MODE', 'offline')
  (tmp_path / 'wandb' / 'offline-run-20200101_000000-other').mkdir(parents=True)     # killed while it opened
  ids = set(killed_and_continued(tmp_path, 'wandb', moment))
  wandb.teardown()                                                     # waits until the file is written
  assert len(ids) == 1
  files = sorted((tmp_path / 'wandb').glob(f'offline-run-*/run-{ids.pop()}.wandb'))
  assert [file.parent for file in files] == list((tmp_path / 'wandb').glob('offline-run-*'))
  rows = [row for file in files for row in history(file)]
  assert [(row['step'], row['loss/ce']) for row in rows if 'loss/ce' in row] == CURVE
  assert all(row['step'] == row['_step'] for row in rows)
  key = 'load/sparse0/values'
  assert [(row['step'], row[key][0]) for row in rows if key in row] == LOADS


def history(file):
  """The rows that wandb keeps in a file of an offline run: LevelDB's log format after seven bytes."""
  from wandb.proto import wandb_internal_pb2
  content, at, data = file.read_bytes(), 7, b''
  while at < len(content):
    if 32768 - at % 32768 < 7:                                       # the rest of a block is too small
      at += 32768 - at % 32768
      continue
    _, length, kind = struct.unpack('<IHB', content[at:at + 7])
    data += content[at + 7:at + 7 + length]
    at += 7 + length
    if kind in (2, 3):                                               # the first part, and parts between
      continue
    record, data = wandb_internal_pb2.Record.FromString(data), b''
    if record.HasField('history'):
      yield {'/'.join(item.nested_key) or item.key: json.loads(item.value_json)
             for item in record.history.item}


def test_a_writer_that_fails_is_left_and_gets_later_what_it_lacks(tmp_path, monkeypatch):
  class Fails:
    id, holds, got = 'a', -1, []

    def __init__(self, path, step, *, holds, **_):
      self.holds = holds

    def write(self, step, values, loads):
      if step == 4 and not pathlib.Path(tmp_path / 'mended').exists():
        raise ConnectionError('no route\nto the host')
      self.got.append((step, values['loss/ce']))

  monkeypatch.setattr(lookup, 'constructor', lambda kind, name: Fails)
  said = []
  killed_writer.log(tmp_path, start(tmp_path, 0, 'tensorboard', say=said.append), 2, 4, 6)
  assert said == [said[0]] and 'tensorboard gets no more lines (ConnectionError: no route)' in said[0]
  (tmp_path / 'mended').touch()
  killed_writer.log(tmp_path, start(tmp_path, 6, 'tensorboard'), 8)
  assert Fails.got == CURVE


def test_a_writer_must_exist_and_be_installed(monkeypatch):
  with pytest.raises(errors.UserError, match='no writer is called .wandbb.; nearest: wandb'):
    writers.check(killed_writer.config('tensorboard', 'wandbb'))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r'log.writers=mlflow: mlflow is not installed; pip install '
                                             r'"stmoe\[mlflow\]"'):
    writers.check(killed_writer.config('mlflow'))
  assert writers.names(ml_collections.ConfigDict()) == ('tensorboard',)
