"""What notebooks call: training that speaks one line, the model it leaves, texts in batches."""

import sys

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.answer import interactive
from stmoe.data.text import vocab

TINY = {'train.steps': 2, 'train.batch_size': 8, 'train.log_every': 1, 'train.stats_every': 1,
        'eval.every': 2, 'eval.batches': 1, 'eval.batch_size': 8, 'checkpoint.every': 2, 'data.length': 32,
        'model.d_model': 32, 'model.head_dim': 16, 'model.num_heads': 2, 'blocks.m.group_size': 32}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return interactive.train('upcycling/stdlib:smoke', tmp_path_factory.mktemp('runs') / 'tiny', TINY)


@pytest.mark.slow
def test_training_says_one_line_and_a_second_call_only_reads(run, capsys):
  assert run.done['step'] == 2 and run.last('loss/ce') > 0
  again = interactive.train('upcycling/stdlib:smoke', run.path, TINY)
  assert again.done == run.done and len(capsys.readouterr().out.splitlines()) <= 1


def test_the_model_of_a_run_opens(run):
  model, config, vocabulary = interactive.opened(run.path)
  batch = interactive.batch(config, vocabulary, 'def f(x): return x\n' * 3)
  assert batch['decoder_input_tokens'].shape == (8, 32)
  assert (batch['decoder_segment_ids'] > 0).sum(1).tolist() == [32, 25, *[0] * 6]
  logits, _ = jax.jit(lambda m, b: m(b))(model, batch)
  assert logits.shape == (8, 32, 384) and np.isfinite(logits).all()
  [text] = interactive.generate(run.path, ['def f('], dict(name='greedy'), length=3)
  assert isinstance(text, str)


def test_a_run_without_checkpoint_and_a_model_of_pairs_are_refused(run, tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text((run.path / 'config.json').read_text())
  with pytest.raises(errors.UserError, match='has no checkpoint yet'):
    interactive.opened(tmp_path)
  config, _ = experiment.load('switch/base_c4:smoke')
  with pytest.raises(errors.UserError, match='encoder-decoder'):
    interactive.batch(config, vocab.Bytes(), 'a')


def test_what_is_said_is_kept_or_shown(monkeypatch, capsys):
  for kind, shown in (('', ''), ('plain', 'a\nb\n')):
    monkeypatch.setenv('STMOE_PROGRESS', kind)
    with interactive.said() as lines:
      print('a\nb', file=sys.stderr)
    assert lines == ([] if shown else ['a', 'b']) and capsys.readouterr().err == shown
