"""stmoe finetune and stmoe eval --task: mistakes are one line and exit code 2, and leave nothing behind."""

import json

import pytest

from stmoe import experiment


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))


@pytest.fixture
def start(tmp_path):
  """A run directory that has only its configuration."""
  path = tmp_path / 'start'
  (path / 'checkpoints').mkdir(parents=True)
  config, _ = experiment.load('switch/base_c4:smoke')
  (path / 'config.json').write_text(experiment.to_json(config))
  return path


@pytest.fixture
def lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(dict(inputs=f'is {i}', targets='yes')) + '\n' for i in range(40)))
  return path


def test_mistakes_are_one_line(mistake, start, lines, tmp_path):
  run = lambda *words: mistake('finetune', *words, '--workdir', tmp_path / 'run')
  data = f'--config.data.jsonl={lines}'
  assert 'has no checkpoint' in run(start, 'finetune/jsonl', data)
  assert 'is not a run directory' in run(tmp_path, 'finetune/jsonl', data)
  assert "no experiment is called 'nowhere'" in run('nowhere', 'finetune/jsonl', data)
  assert 'nearest: finetune/jsonl' in run(start, 'finetune/jsonlines', data)
  assert 'vmoe/finetune of images, or c.finetune = dict() in a file' in run(start, 'lm/text:smoke')
  assert 'config.train.stps does not exist' in run(start, 'finetune/jsonl', data, '--config.train.stps=2')
  lines.write_text(lines.read_text() + '{"inputs": "a"}\n')
  assert "a.jsonl, line 41 is no row of task jsonl: the field 'targets' is missing" in run(
      start, 'finetune/jsonl', data)
  assert not (tmp_path / 'run').exists()


def test_a_start_of_images(mistake, tmp_path, lines):
  path = tmp_path / 'images'
  path.mkdir()
  (path / 'config.json').write_text(experiment.to_json(experiment.load('vmoe/digits:smoke')[0]))
  said = mistake('finetune', path, 'finetune/jsonl', f'--config.data.jsonl={lines}')
  assert 'of images; these tasks need a model of text' in said


def test_eval_of_tasks(mistake, start):
  (start / 'checkpoints' / '1').mkdir()
  assert "no task is called 'bolq'; nearest: boolq" in mistake('eval', start, '--task', 'bolq')
  assert 'do not go together' in mistake('eval', start, '--task', 'boolq', '--sweep', 'eval.batches=1,2')
