"""Vocabularies: ids, sentinels, exact round trips, recorded SentencePiece encodings."""

import itertools
import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from stmoe import errors
from stmoe.data.text import tasks
from stmoe.data.text import vocab

DATA = pathlib.Path(__file__).parents[2] / 'data' / 'sentencepiece'
MODEL = DATA / 'seqio_test_26.model'
CODE = 'def f(x):\n\treturn  x \n\n    if y:\r\n  # naïve café — 日本語 \u200b\x00\x01 12345\n'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocab') / 'pieces.model'
  path.write_bytes(vocab.train(tasks.get('stdlib').documents('validation'), 600))
  return path


def test_bytes_have_the_ids_of_seqio():
  v = vocab.Bytes(extra_ids=100)
  assert v.encode(['ab'])[0].tolist() == [100, 101]
  assert (v.vocab_size, v.eos_id, v.sentinel(0), v.sentinel(99)) == (359, 1, 358, 259)


@given(st.text())
def test_bytes_keep_every_text(text):
  v = vocab.Bytes(10)
  assert v.decode(v.encode([text])[0]) == text


def test_decoding_stops_at_eos_and_drops_what_is_no_byte():
  v = vocab.Bytes(10)
  assert v.decode([0, 2, 100, 268, 101, 1, 102]) == 'ab'


def test_pieces_match_recorded_encodings():
  recorded = json.loads((DATA / 'seqio_test_26.json').read_text())
  v = vocab.Pieces(MODEL)
  assert v.vocab_size == recorded['vocab_size'] == 26
  found = v.encode([case['text'] for case in recorded['cases']])
  for case, ids in zip(recorded['cases'], found, strict=True):
    assert ids.tolist() == case['ids'], case['text']
    assert v.decode(ids) == case['decoded']


def test_extra_ids_are_above_the_pieces_and_may_be_written():
  v = vocab.Pieces(MODEL, extra_ids=10)
  assert v.vocab_size == 36
  assert v.sentinel(np.arange(2)).tolist() == [35, 34]
  assert v.encode(['a <extra_id_0> d'])[0].tolist() == [3, 5, 35, 3, 21]
  assert v.digest != vocab.Pieces(MODEL).digest


def test_a_trained_vocabulary_keeps_code_exactly(trained):
  v = vocab.Pieces(trained)
  texts = [CODE, '', ' ', '\n', '\t\t\n  \n', ' lead ', *tasks.get('stdlib').documents('validation')]
  for text, ids in zip(texts, v.encode(texts), strict=True):
    assert v.decode(ids) == text
    assert v.eos_id not in ids and 2 not in ids and 0 not in ids
  assert (v.vocab_size, v.eos_id) == (600, 1)
  assert [ids.tolist() for ids in v.encode(['\n', '\t'])] == [[3], [4]]


def test_training_is_deterministic(trained):
  assert trained.read_bytes() == vocab.train(tasks.get('stdlib').documents('validation'), 600)


def test_training_takes_the_first_of_the_text(monkeypatch):
  monkeypatch.setattr(vocab, 'SAMPLE', 1000)
  texts = ['the routers of sparse experts ' * 50, 'never seen ' * 50]
  assert vocab.train(texts, 285) == vocab.train([texts[0][:1000]], 285)


@pytest.mark.parametrize('blank', [' ', ''])
def test_a_text_of_one_long_line(blank, tmp_path):
  """SentencePiece leaves out lines of more than a mebibyte: of such a text it learned nothing, or failed."""
  words = ['router', 'expert', 'token', 'gate', 'capacity', 'balance', 'naïve', 'span', 'window']
  text = blank.join(words[i] for i in np.random.default_rng(0).integers(0, len(words), 200_000))
  assert len(text.encode()) > vocab.LONGEST
  (tmp_path / 'a.model').write_bytes(vocab.train([text, 'short\n'], 330))
  (tmp_path / 'b.model').write_bytes(vocab.train([text[:20_000]], 330))
  tokens = lambda name: len(vocab.Pieces(tmp_path / name).encode([text[:20_000]])[0])
  assert tokens('a.model') < 1.1 * tokens('b.model') < 10_000        # characters: 20,000


@pytest.mark.parametrize('pieces, said', [(100, 'at least'), (50000, 'no more than')])
def test_an_impossible_size_is_one_line(pieces, said):
  with pytest.raises(errors.UserError, match=f'data.vocab=train:{pieces}: this text .*{said}'):
    vocab.train(['ab cd\nef gh'] * 20, pieces)


def test_files_that_are_no_model(tmp_path):
  with pytest.raises(errors.UserError, match='No such file'):
    vocab.Pieces(tmp_path / 'none.model')
  for text, extra_ids in itertools.product(('', 'text', 'root:x:0:0:root:/root:/bin/bash\n'), (0, 10)):
    (tmp_path / 'text.model').write_text(text)
    with pytest.raises(errors.UserError, match='not a SentencePiece model'):
      vocab.Pieces(tmp_path / 'text.model', extra_ids)
