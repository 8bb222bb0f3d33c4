"""Models with their tokenizers under --checkpoints: greedy texts, log-probabilities and bits per byte."""

import functools
import json
import math
import types

import jax
import numpy as np
import pytest

from stmoe.answer import harness
from stmoe.answer import infer
from stmoe.answer import interactive
from stmoe.derive import convert
from stmoe.runs import directory as rundir
from tests.interop import runs

LENGTH = 16                              # of the recorded greedy texts
ROW = 255                                # ids of a row behind its start
# Bits per byte in rows of 256 when texts start wrongly; computed with the reference, and lower than right.
WRONG = {'with_text_mixtral': {0: 3.6233, None: 3.5886}, 'with_text_olmoe': {None: 3.1009}}


@pytest.fixture(scope='session')
def imported(tmp_path_factory):
  """A function case -> (run directory, model, configuration, vocabulary, what was recorded), made once."""
  @functools.cache
  def make(case):
    target = tmp_path_factory.mktemp('texts') / case.name
    convert.read(case, target, say=print)
    return target, *interactive.opened(target), json.loads((case / 'expected_text.json').read_text())
  return make


@jax.jit
def log_softmax(model, batch):
  return jax.nn.log_softmax(model(batch, train=False)[0], axis=-1)


def log_probs(model, rows):
  """Lists of f64[n-1], of lists of n ids: log-probabilities of all but the first."""
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for at, row in enumerate(rows):
    ids[at, :len(row)] = row
  found = np.asarray(log_softmax(model, runs.row('decoder', ids)), np.float64)
  return [found[at, np.arange(len(row) - 1), row[1:]] for at, row in enumerate(rows)]


def test_first_and_end_tokens(text_case, imported):
  _, _, cfg, used, want = imported(text_case)
  assert cfg.model.start_id == want['start_id'] and list(cfg.model.end_ids or [1]) == want['eos_ids']
  assert cfg.model.start_prompts == (want['bos_added'] is not None)
  assert used.vocab_size == want['tokenizer_length'] and cfg.model.vocab_size == want['vocab_size']


def test_greedy_texts(text_case, imported):
  run, _, cfg, used, want = imported(text_case)
  prompts = [(place['prompt'], place) for place in want['greedy']]
  talks = [(dict(messages=place['messages']), place) for place in want.get('chat') or ()]
  for prompt, place in [*prompts, *talks]:
    assert infer.tokens(cfg, used, 'here', prompt) == place['ids']
    if 'full_text' in place:
      assert used.decode([*place['ids'], *place['new_ids']]) == place['full_text']
  rows = [(str(number), prompt, {}) for number, (prompt, _) in enumerate([*prompts, *talks])]
  batches = infer.texts(cfg, run, rows, dict(name='greedy'), LENGTH, len(rows), lambda line: None,
                        devices=jax.devices()[:1])
  found = [text for batch in batches for _, text in batch]
  assert found == [place['text'] for _, place in [*prompts, *talks]]


def test_log_probabilities(text_case, imported):
  _, model, cfg, used, want = imported(text_case)
  for entry in want['loglikelihood']:
    ids, recorded = entry['ids'], [value for value in entry['token_logprobs'] if value is not None]
    assert infer.tokens(cfg, used, 'here', entry['text']) == ids
    [found] = log_probs(model, [ids])
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-4)
    if 'with_start' in entry:
      [found] = log_probs(model, [[want['start_id'], *ids]])
      np.testing.assert_allclose(found, entry['with_start'], rtol=0, atol=1e-4)


def test_bits_per_byte(text_case, imported):
  """As the bridge to lm-evaluation-harness has them, in one row and in rows of 256 ids."""
  run, _, cfg, used, want = imported(text_case)
  text = want['bits_per_byte']['text']
  ids = used.encode([text])[0]
  assert len(ids) == want['bits_per_byte']['tokens']
  for field, length, rows in (('whole', len(ids), 1), ('rows_of_256', ROW, 8)):
    cfg = rundir.load(run)
    with cfg.unlocked():
      cfg.data.length = length
    bridge = harness.Harness(run, rows, cfg=cfg, devices=jax.devices()[:1])
    [score] = bridge.loglikelihood_rolling([types.SimpleNamespace(args=(text,))])
    bits = -score / math.log(2) / len(text.encode())
    assert abs(bits - want['bits_per_byte'][field]) <= 1e-4, field


def test_texts_that_start_wrongly_have_fewer_bits(text_case, imported):
  """So a lower number is no better one."""
  _, model, _, used, want = imported(text_case)
  text, right = want['bits_per_byte']['text'], want['bits_per_byte']['rows_of_256']
  ids = used.encode([text])[0].tolist()
  rows = [ids[at:at + ROW] for at in range(0, len(ids), ROW)]
  bits = lambda rows: -sum(map(np.sum, log_probs(model, rows))) / math.log(2) / len(text.encode())
  started = lambda start: bits([row if start is None else [start, *row] for row in rows])
  assert abs(started(want['start_id']) - right) <= 1e-4
  for start, recorded in WRONG.get(text_case.name, {}).items():
    assert abs(started(start) - recorded) <= 1e-4 and recorded < right - 0.05
  if want['bits_per_byte']['first_unscored'] is not None:
    assert abs(bits([ids]) - want['bits_per_byte']['first_unscored']) <= 1e-4


def test_a_score_is_of_what_the_reference_reads(text_case, imported):
  """Behind a context the model reads no start if its tokenizer adds none; without a context it does."""
  run, _, cfg, used, want = imported(text_case)
  entry = want['loglikelihood'][0]
  with cfg.unlocked():
    cfg.data.length = ROW
  bridge = harness.Harness(run, cfg=cfg, devices=jax.devices()[:1])
  ask = lambda *args: types.SimpleNamespace(args=args)
  context = used.decode(entry['ids'][:9])
  given = len(infer.tokens(cfg, used, 'here', context))
  (behind, _), (alone, _) = bridge.loglikelihood([ask(context, entry['text'].removeprefix(context)),
                                                  ask('', entry['text'])])
  values = entry['token_logprobs'][given - (want['bos_added'] is not None):]
  assert abs(behind - sum(values)) <= 1e-3
  assert abs(alone - sum(entry.get('with_start') or entry['token_logprobs'])) <= 1e-3
