"""What evaluation counts: the bytes of the rows that were scored, and rows of every task of a mixture."""

import math
import types

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.targets import ids
from stmoe.train import evaluate
from stmoe.train import state as states
from tests.train import tiny_run

NATS = 0.7                               # of every token, by a model of one idea


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Two files whose held out parts have tokens of very different length: known words, and unknown letters."""
  folder = tmp_path_factory.mktemp('corpus')
  (folder / 'a.txt').write_text('the router sends the token to the expert and the expert answers\n' * 400)
  rng = np.random.default_rng(0)
  letters = [chr(i) for i in range(0x3b1, 0x3ca)]                    # Greek: two bytes each
  (folder / 'b.txt').write_text(''.join(''.join(rng.choice(letters, 60)) + '\n' for _ in range(400)))
  return folder


def evaluated(cfg, opened=None, **more):
  sums = lambda params, routers, batch, key: dict(
      ce=NATS * ids.weights(batch).sum(), correct=0.0, weight=ids.weights(batch).sum(), load={})
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    plan = types.SimpleNamespace(mesh=mesh, target=ids.Ids(), evaluated=lambda state: state['params'])
    return evaluate.run(cfg, plan, sums, dict(params={}, router_state={}), pipeline.info(cfg), opened=opened,
                        **more)


def scored(cfg, most):
  """(tokens, bytes of their text) of the first `most` batches, by decoding them."""
  vocabulary = pipeline.info(cfg)['vocab']
  ids = np.concatenate([batch['decoder_target_tokens'][batch['decoder_loss_weights'] > 0]
                        for batch in pipeline.eval_batches(cfg, most=most)])
  pieces = [i for i in ids.tolist() if i != vocabulary.eos_id]
  if hasattr(vocabulary, 'path'):        # pieces that are bytes of a character are one byte each
    return len(ids), sum(1 if vocabulary._model.is_byte(i) else len(vocabulary.decode([i]).encode())
                         for i in pieces)
  return len(ids), len(pieces)


@pytest.mark.parametrize('vocab', ['bytes', 'train:330'])
@pytest.mark.parametrize('most, loss_from', [(1, 0.0), (3, 0.0), (3, 0.5), (0, 0.5)])
def test_bits_per_byte_are_of_the_bytes_that_were_scored(corpus, vocab, most, loss_from):
  cfg = tiny_run.config(corpus, **{'data.vocab': vocab, 'eval.batches': most}).unlock()
  cfg.data.loss_from = loss_from
  found = evaluated(cfg)
  tokens, num_bytes = scored(cfg, most)
  assert found['eval/tokens'] == tokens
  np.testing.assert_allclose(found['eval/bits_per_byte'], NATS * tokens / math.log(2) / num_bytes, rtol=1e-6)


def test_a_part_of_a_split_has_another_ratio_than_the_whole(corpus):
  """The case that was wrong: the ratio of the whole split on rows whose tokens are much longer."""
  part, whole = (evaluated(tiny_run.config(corpus, **{'data.vocab': 'train:330', 'eval.batches': most}))
                 for most in (2, 0))
  assert part['eval/loss'] == pytest.approx(whole['eval/loss'])
  assert part['eval/bits_per_byte'] < 0.75 * whole['eval/bits_per_byte']


def test_a_whole_split_has_the_ratio_of_its_facts(corpus):
  cfg = tiny_run.config(corpus, **{'data.vocab': 'train:330', 'eval.batches': 0})
  facts = pipeline.info(cfg)
  assert facts['piece_bytes'] == facts['num_bytes']
  found = evaluated(cfg)
  assert found['eval/bits_per_byte'] == ids.bits_per_byte(found['eval/loss'], facts['bytes_per_token'])


def test_targets_of_which_none_counts_are_a_line(corpus):
  cfg = tiny_run.config(corpus, **{'data.documents': 'line', 'data.join': False, 'data.length': 2000})
  cfg = cfg.unlock()
  cfg.data.loss_from = 0.5
  line = 'loss_from=0.5: the first 1000 targets .* the longest text has 121; nearest: data.loss_from=0.05'
  with pytest.raises(errors.UserError, match=line):
    pipeline.train_iterator(cfg)
  cfg.data.loss_from = 0.05
  assert next(iter(pipeline.eval_batches(cfg)))['decoder_loss_weights'].any()
  none = lambda batch: batch | dict(decoder_loss_weights=0 * batch['decoder_loss_weights'])
  with pytest.raises(errors.UserError, match='none of the targets in 2 batches .*validation'):
    evaluated(cfg, complete=none)


def test_bytes_of_a_vocabulary_that_rewrites_text():
  """Of 1000 bytes of text it keeps 800 in its pieces: 40 bytes of pieces in 10 tokens are 50 of text."""
  facts = dict(num_tokens=200, num_bytes=1000, piece_bytes=800, bytes_per_token=5.0)
  assert evaluate.bytes_per_token(facts, 10, 40) == 5.0
  assert evaluate.bytes_per_token(facts, 200, 1) == 5.0
