"""Baselines of a text: n-grams against counting by hand, and the command that prints them."""

import collections
import math

import pytest

from stmoe.analysis import ngram
from stmoe.experiments import baselines

TRAIN = b'abracadabra, abracadabra; the cat sat on the mat. ' * 3
TEXT = b'the abra sat on a cat? zz'


def by_hand(train, text, order):
  """Bits per byte of the recursion in the docstring, one context after the other."""
  followers = collections.defaultdict(collections.Counter)
  for n in range(1, order + 1):
    for i in range(len(train) - n + 1):
      followers[n, train[i:i + n - 1]][train[i + n - 1]] += 1

  def p(context, byte):
    shorter = p(context[1:], byte) if context else 1 / 256
    seen = followers[len(context) + 1, context]
    total = sum(seen.values())
    return (seen[byte] + len(seen) * shorter) / (total + len(seen)) if total else shorter
  return -sum(math.log2(p(text[max(i - order + 1, 0):i], text[i])) for i in range(len(text))) / len(text)


def test_ngrams_are_interpolated_by_witten_and_bell():
  found = ngram.bits(TRAIN, TEXT)
  assert found == pytest.approx([by_hand(TRAIN, TEXT, n) for n in range(1, ngram.LONGEST + 1)])
  assert ngram.bits(TRAIN, TRAIN[:2]) == pytest.approx([by_hand(TRAIN, TRAIN[:2], n) for n in (1, 2)])


def test_probabilities_of_a_context_sum_to_one():
  log2 = lambda text: -len(text) * ngram.bits(TRAIN, text)[-1]
  assert sum(2 ** (log2(bytes((97, 98, b))) - log2(b'ab')) for b in range(256)) == pytest.approx(1)


def test_xz_has_seen_the_training_text():
  text = bytes(i * i % 251 for i in range(2000))
  assert ngram.xz(text, text) < 0.2 * ngram.xz(b'', text)


def test_the_command_prints_them(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('the cat sat on the mat.\n' * 200)
  assert baselines.main(['lm/text', f'--config.data.files={tmp_path / "a.txt"}']) == 0
  lines = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines())
  assert lines['uniform bytes'] == '8.000' and 'xz given the training text' in lines
  best = next(name for name in lines if name.startswith('best'))
  assert lines[best] == min((lines[f'byte {n}-gram'] for n in range(1, 9)), key=float)
  (tmp_path / 'rows.jsonl').write_text('{"body": "the cat sat on the mat.\\n"}\n' * 200)
  rows = ['lm/text', f'--config.data.files={tmp_path / "rows.jsonl"}', '--config.data.field=body']
  assert baselines.main(rows) == 0 and 'uniform bytes' in capsys.readouterr().out
  assert baselines.main(['lm/txt']) == 2 and baselines.main([]) == 2
  assert 'nearest' in capsys.readouterr().err
