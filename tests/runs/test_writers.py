"""Services that show a run's metrics: no step twice and none missing, however the run was killed.

The real packages are used, offline, where they are installed (extras wandb, trackio, mlflow).
"""

import importlib.util
import json
import pathlib
import struct

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.runs import by_step
from stmoe.runs import metrics_file
from stmoe.runs import writers

LOAD = {'sparse0': np.float32([0.5, 0.25, 0.25]), 'sparse1': np.float32([1, 0])}


def config(*names):
  return ml_collections.ConfigDict(dict(seed=3, model=dict(layers=(('m', 1),)), log=dict(writers=names)))


def start(path, step, *names, say=pytest.fail):
  """(metrics.jsonl, writers) of a run that continues after `step`."""
  lines = metrics_file.Metrics(path, step)
  return lines, writers.Writers(path, step, lines.lines, config(*names), say)


def log(opened, *steps):
  lines, services = opened
  for step in steps:
    services.write(step, lines.write(step, {'loss/ce': step / 2, 'skipped': 0, 'bad': np.nan,
                                           'time': dict(seconds=step, tokens_per_s=9.0)}))


def killed_and_continued(path, name):
  """A run killed after step 6, whose newest checkpoint is that of step 4, and which ends with step 8."""
  opened = start(path, 0, name)
  log(opened, 2, 4, 6)
  by_step.write_router_stats(path, 6, LOAD, {})
  opened[1].loads(6, LOAD)
  yield opened[1]
  opened = start(path, 4, name)
  log(opened, 6, 8)
  by_step.write_router_stats(path, 8, LOAD, {})
  opened[1].loads(8, LOAD)
  opened[1].finish({'step': 8, 'loss/ce': 4.0, 'bad': None})
  opened[1].close()
  yield opened[1]


CURVE = [(2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)]


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
  log(start(tmp_path, 0, 'tensorboard'), 2, 4, 6)                      # neither finished nor closed
  values = [(event.step, value.simple_value) for event in events(tmp_path / 'tensorboard')
            for value in event.summary.value if value.tag == 'loss/ce']
  assert values == CURVE[:3]


def test_tensorboard_takes_back_the_steps_that_a_killed_run_did_again(tmp_path):
  for _ in killed_and_continued(tmp_path, 'tensorboard'):
    pass
  curve, speed, histograms, pictures = {}, set(), set(), set()
  for event in events(tmp_path / 'tensorboard'):
    if event.HasField('session_log'):                                # START: later steps are void
      curve = {step: value for step, value in curve.items() if step < event.step}
    for value in event.summary.value:
      if value.tag == 'loss/ce':
        assert event.step not in curve
        curve[event.step] = value.simple_value
      times = value.tag in ('time', 'tokens_per_s')
      speed |= {(event.step, value.tag, value.simple_value)} if times else set()
      histograms |= {value.tag} if value.HasField('histo') else set()
      pictures |= {value.tag} if value.HasField('image') else set()
  assert sorted(curve.items()) == CURVE
  assert {(8, 'time', 8.0), (8, 'tokens_per_s', 9.0)} <= speed
  assert histograms == {'load/sparse0', 'load/sparse1'}
  assert pictures == {'load_by_step/sparse0', 'load_by_step/sparse1'}
  hyper = [value.tag for event in events(tmp_path / 'tensorboard' / 'hparams')
           for value in event.summary.value]
  assert '_hparams_/session_start_info' in hyper and 'loss/ce' in hyper


def real(name):
  return pytest.mark.skipif(not importlib.util.find_spec(name), reason=f'{name} is not installed')


@real('mlflow')
def test_mlflow(tmp_path, monkeypatch):
  import mlflow
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  ids = {services._open['mlflow'].id for services in killed_and_continued(tmp_path, 'mlflow')}
  client = mlflow.MlflowClient()
  run, = client.search_runs([client.get_experiment_by_name('stmoe').experiment_id])
  assert {run.info.run_id} == ids and run.info.status == 'FINISHED'
  assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, 'loss/ce')] == CURVE
  assert run.data.params['model.layers'] == "(('m', 1),)"
  assert len(client.list_artifacts(run.info.run_id, 'router_stats')) == 2


@real('trackio')
def test_trackio(tmp_path, monkeypatch):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'store'))
  from trackio import sqlite_storage
  monkeypatch.setattr(sqlite_storage, 'TRACKIO_DIR', tmp_path / 'store')
  first, second = killed_and_continued(tmp_path, 'trackio')
  name = first._open['trackio'].id
  rows = sqlite_storage.SQLiteStorage.get_logs('stmoe', name)
  assert second._open['trackio'].id == name
  assert [(row['step'], row['loss/ce']) for row in rows if 'loss/ce' in row] == CURVE
  assert [row['load/sparse0/0'] for row in rows if 'load/sparse0/0' in row] == [0.5, 0.5]


@real('wandb')
def test_wandb_offline(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  ids = {services._open['wandb'].id for services in killed_and_continued(tmp_path, 'wandb')}
  assert len(ids) == 1
  files = sorted((tmp_path / 'wandb').glob(f'offline-run-*/run-{ids.pop()}.wandb'))
  rows = [row for file in files for row in history(file)]
  assert [(row['step'], row['loss/ce']) for row in rows if 'loss/ce' in row] == CURVE


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

    def write(self, step, values):
      if step == 4 and not pathlib.Path(tmp_path / 'mended').exists():
        raise ConnectionError('no route\nto the host')
      self.got.append((step, values['loss/ce']))

  monkeypatch.setattr(lookup, 'constructor', lambda kind, name: Fails)
  said = []
  log(start(tmp_path, 0, 'tensorboard', say=said.append), 2, 4, 6)
  assert said == [said[0]] and 'tensorboard gets no more lines (ConnectionError: no route)' in said[0]
  (tmp_path / 'mended').touch()
  log(start(tmp_path, 6, 'tensorboard'), 8)
  assert Fails.got == CURVE


def test_a_writer_must_exist_and_be_installed(monkeypatch):
  with pytest.raises(errors.UserError, match='no writer is called .wandbb.; nearest: wandb'):
    writers.check(config('tensorboard', 'wandbb'))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r'log.writers=mlflow: mlflow is not installed; pip install '
                                             r'"stmoe\[mlflow\]"'):
    writers.check(config('mlflow'))
  assert writers.names(ml_collections.ConfigDict()) == ('tensorboard',)
