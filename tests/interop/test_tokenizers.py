"""Every tokenizer under --tokenizers: the reference's ids, texts, pieces, padding, truncation and chats."""

import functools
import json

import numpy as np
import pytest

from stmoe import errors
from stmoe.data.text import chat
from stmoe.data.text import detokenize
from stmoe.data.text import tokenizer

NAMED = {'bos_id': 'bos_token', 'eos_id': 'eos_token', 'pad_id': 'pad_token', 'unk_id': 'unk_token'}


@functools.cache
def opened(case):
  return tokenizer.opened(case), json.loads((case / 'expected.json').read_text())


def test_sizes_and_special_tokens(tokenizer_case):
  used, want = opened(tokenizer_case)
  assert used.vocab_size == want['length']
  assert {field: used.id(name) for field, name in NAMED.items()} == {field: want[field] for field in NAMED}


def test_ids(tokenizer_case):
  used, want = opened(tokenizer_case)
  texts = [case['text'] for case in want['cases']]
  for case, ids in zip(want['cases'], used.encode(texts), strict=True):
    assert ids.tolist() == case['ids'], case['text']
    [special], [mask] = used.rows([case['text']])
    assert special.tolist() == case['ids_special'] and mask.all(), case['text']


def test_decoded_texts(tokenizer_case):
  used, want = opened(tokenizer_case)
  for case in want['cases']:
    assert used.decode(case['ids_special'], special=True) == case['decoded']
    assert used.decode(case['ids_special']) == case['decoded_skip']
    for count, text in enumerate(case.get('prefixes', ())):
      assert used._decode(case['ids'][:count]) == text, count


def test_streamed_pieces(tokenizer_case):
  used, want = opened(tokenizer_case)
  for case in want['cases']:
    stream = used.stream()
    found = [stream(token) for token in case['ids']]
    assert case['stream'] in (None, found), case['text']


def test_a_stream_decodes_little_again(tokenizer_case):
  """However long the text is, and its special tokens within."""
  used, want = opened(tokenizer_case)
  silent = [i for i in want['special_ids'] if not used.decode([i])]
  ids, counts = [*silent * 500, *(i for case in want['cases'] for i in case['ids'])] * 3, []
  stream = used.stream()
  stream._decode = lambda some: counts.append(len(some)) or used._decode(some)
  for token in ids:
    stream(token)
  assert len(ids) > 2000 and sum(counts) < 40 * len(ids)


def test_padding_and_truncation(tokenizer_case):
  used, want = opened(tokenizer_case)
  cut = want['truncated']
  [ids], _ = used.rows([cut['text']], cut['max_length'])
  assert ids.tolist() == cut['ids_special']
  if 'batch' in want:
    ids, mask = used.rows(want['batch']['texts'])
    assert (ids.tolist(), mask.tolist()) == (want['batch']['input_ids'], want['batch']['attention_mask'])
  elif want['pad_id'] is None:
    with pytest.raises(errors.UserError, match='no pad_token'):
      used.rows(['a', 'of another length'])


def test_chats(tokenizer_case):
  used, want = opened(tokenizer_case)
  for talk in want.get('chat', ()):
    text = chat.text(used, talk, talk['add_generation_prompt'])
    assert text == talk['text']
    assert used.encode([text])[0].tolist() == talk['ids']


def test_bytes_of_ids_are_those_of_their_text(tokenizer_case):
  """But for a first blank, which a text may lose; a broken byte is one, and its sign in the text three."""
  used, want = opened(tokenizer_case)
  for case in want['cases']:
    text = used._decode(case['ids'])
    if detokenize.BROKEN not in text:
      assert 0 <= int(used.num_bytes(np.asarray(case['ids'], int)).sum()) - len(text.encode()) <= 1, text
