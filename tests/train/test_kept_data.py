"""A run keeps to the data it read: what becomes of the files while it trains and after changes no number."""

import json
import pathlib
import shutil
import types

import jax
import pytest

from stmoe import errors
from stmoe.answer import harness
from stmoe.answer import infer
from stmoe.answer import interactive
from stmoe.answer import score
from stmoe.core import tables
from stmoe.data.text import corpus
from stmoe.data.text import hash_tables
from stmoe.runs import directory as rundir
from stmoe.train import loop
from tests.train import tiny_run

ONE = jax.devices()[:1]


def config(folder, **more):
  """The configuration of a run on the text in `folder` with a vocabulary and a hash table made of it."""
  router = dict(name='hash', num_experts=4, vocab_size=296, table=str(folder / 'table.npz'))
  return tiny_run.config(folder, **{
      'data.vocab': 'train:290', 'model.vocab_size': 296, 'blocks.m.router': router,
      'losses': dict(z=(0.0, 'mean')), 'train.steps': 4, 'eval.every': 2, 'eval.batches': 0,
      'checkpoint.every': 2, 'checkpoint.async_save': False} | more)


def prepared(folder):
  """`folder` with the text and the table."""
  tiny_run.write_corpus(folder)
  vocabulary = hash_tables.count(config(folder))[1]
  table = tables.TableFile(tables.random_table(296, 4, 0), 4, 'random', vocabulary.digest)
  table.write(folder / 'table.npz')
  return folder


def evals(run):
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['eval/loss'] for line in lines if 'eval/loss' in line}


@pytest.fixture(scope='module')
def disturbed(tmp_path_factory):
  """(run whose text was changed and removed while it trained, how often that was read)."""
  folder, read, times = prepared(tmp_path_factory.mktemp('disturbed')), corpus.text, []
  advance = loop.Loop.advance

  def changing(self):
    advance(self)
    if self.step == 1:
      with open(folder / 'a.txt', 'a') as file:
        file.write('and more, and more of it\n' * 3000)
      for name in ('b.txt', 'table.npz'):
        (folder / name).unlink()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Loop, 'advance', changing)
    patch.setattr(corpus, 'text', lambda files, *how: times.append(files) or read(files, *how))
    assert loop.train(config(folder), folder / 'run', 'tiny', ONE) == 0
  return folder / 'run', len(times)


def test_text_that_changes_during_training(disturbed, tmp_path):
  run, times = disturbed
  folder = prepared(tmp_path)
  assert loop.train(config(folder), folder / 'run', 'tiny', ONE) == 0
  assert evals(run) == evals(folder / 'run') and sorted(evals(run)) == [2, 4]
  assert times == 1


def test_evaluation_is_on_the_text_that_was_read(disturbed):
  run, said = disturbed[0], []
  _, values = score.score(rundir.load(run), run, said.append, devices=ONE)
  assert values['eval/loss'] == pytest.approx(evals(run)[4], rel=1e-6)
  notes = [line for line in said if line.startswith('note:')]
  assert len(notes) == 2 and 'a.txt has changed' in notes[0] and 'b.txt is gone' in notes[1]


def test_training_goes_on_and_says_so(disturbed, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(disturbed[0], run)
  folder = disturbed[0].parent
  assert loop.train(config(folder, **{'train.steps': 6}), run, 'tiny', ONE) == 0
  assert sorted(evals(run)) == [2, 4, 6]
  assert f'note: {folder / "b.txt"} is gone since this run read it' in (run / 'log.txt').read_text()
  cache = pathlib.Path(json.loads((run / 'data.json').read_text())['caches']['text']['path'])
  cache.rename(tmp_path / 'away')
  with pytest.raises(errors.UserError, match='run: the cache of its data is lost .*cannot be made again'):
    loop.train(config(folder, **{'train.steps': 8}), run, 'tiny', ONE)
  (tmp_path / 'away').rename(cache)


def test_a_moved_run_alone_generates_and_is_opened(disturbed, tmp_path, monkeypatch):
  run = tmp_path / 'elsewhere'
  shutil.copytree(disturbed[0], run)
  monkeypatch.setattr(corpus, 'text', None)                          # would fail if it were used
  cfg = rundir.load(run)
  cfg.data.cache_dir = str(tmp_path / 'nothing')
  [batch] = infer.texts(cfg, run, [('prompt', '3 squared', {})], dict(name='greedy'), 4, 1, lambda line: None,
                        devices=ONE)
  assert isinstance(batch[0][1], str)
  bridge = harness.Harness(run, cfg=cfg, devices=ONE)
  assert bridge.loglikelihood([types.SimpleNamespace(args=('3 ', 'squared'))])[0][0] < 0
  model, _, vocabulary = interactive.opened(run)
  assert model is not None and vocabulary.decode(vocabulary.encode(['3 cubed'])[0]) == '3 cubed'
