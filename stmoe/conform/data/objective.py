"""What every objective of texts must do: rows that have room, ids of the text, draws that repeat."""

import typing

import numpy as np

from stmoe import lookup
from stmoe.conform import generic
from stmoe.data.text import cache as caches
from stmoe.data.text import pack
from stmoe.data.text import vocab

VOCABULARY = vocab.Bytes(extra_ids=100)
SIZES = dict(length=64, inputs_length=64, targets_length=48)
DRAWS = 5                                # of each text
PAIRS = (4, 3), (1, 2), (3, 1), (80, 90), (2, 90), (80, 2)           # tokens, EOS counted


def says_what_it_is(name: str, **fields) -> None:
  """`eos`, `paired`, `prefix` and `random` are said, and `sides` names the field of every row length."""
  made, sizes = lookup.constructor('objective', name), SIZES | fields
  for key in ('eos', 'paired', 'prefix', 'random'):
    said = getattr(made, key, None)
    assert isinstance(said, bool), f'{key} is {said!r}; wanted: True or False, see data/text/objectives'
  assert {'decoder'} <= {*made.sides} <= {'encoder', 'decoder'}, f'sides={made.sides}; wanted: decoder=FIELD'
  wanted = {side: sizes.get(field) for side, field in made.sides.items()}
  for each in _each(name, fields):
    assert each.limits == wanted, f'limits={each.limits}; wanted: the fields that sides names, {wanted}'
    assert each.paired or each.segment >= 1, f'segment={each.segment}; wanted: the most tokens of a text'
    assert each.eos or not each.paired, 'texts of pairs carry their EOS; wanted: eos = True'


def rows_have_room(name: str, **fields) -> None:
  """A text has ids i[n] for each side, no more than `lengths` says, and that is no more than a row has."""
  for each, numbers, tokens, example in _examples(name, fields):
    assert example.keys() - {'prefix'} == {*each.limits}, (
        f'example has {", ".join(example)}; wanted: {", ".join(each.limits)}')
    said = np.asarray(each.lengths(np.array([numbers] * 2)))
    assert said.shape == (2, len(each.limits)), f'lengths of two texts is {said.tolist()}; wanted: [2,sides]'
    for places, (side, limit) in zip(said[1], each.limits.items()):
      ids = np.asarray(example[side])
      assert ids.ndim == 1 and ids.dtype.kind in 'iu', f'{side} is {ids.dtype}{list(ids.shape)}; wanted: i[n]'
      assert len(ids) <= places <= limit, (
          f'{side} has {len(ids)} ids of {len(tokens)} tokens; lengths says {places}, and a row has {limit}')


def something_is_predicted(name: str, **fields) -> None:
  """Every text has targets that are predicted: weights are 1 on them, 0 on what is given and on padding."""
  prefix = lookup.constructor('objective', name).prefix
  for each, _, tokens, example in _examples(name, fields):
    given, size = example.get('prefix', 0), len(example['decoder'])
    assert 'prefix' in example or not prefix, 'example has no prefix; wanted: how many targets are given'
    assert 0 <= given < size, f'prefix={given} of {size} targets: none of {len(tokens)} tokens is predicted'
    batch, at = pack.empty(each.limits, 1, prefix), np.arange(each.limits['decoder'])
    pack.fill(batch, 0, [example])
    np.testing.assert_array_equal(batch['decoder_loss_weights'][0], (at >= given) & (at < size))


def tokens_are_of_the_text(name: str, **fields) -> None:
  """What is predicted are tokens of the text, EOS and sentinels; of a text that has room none is lost."""
  last, eos = VOCABULARY.vocab_size - 1, VOCABULARY.eos_id
  own = {eos, *map(int, VOCABULARY.sentinel(np.arange(VOCABULARY.extra_ids)))}
  for each, _, tokens, example in _examples(name, fields):
    targets, seen = example['decoder'], np.concatenate([example[side] for side in each.limits])
    assert 1 <= seen.min() <= seen.max() <= last, f'ids are {seen.min()} to {seen.max()}; wanted: 1 to {last}'
    foreign = {*targets[example.get('prefix', 0):].tolist()} - {*tokens.tolist()} - own
    assert not foreign, f'{sorted(foreign)} are predicted, which are not in the text'
    lost, cut = {*tokens.tolist()} - {*seen.tolist()}, each.paired and len(tokens) > min(each.limits.values())
    assert cut or not lost, f'{len(lost)} of {len(tokens)} tokens are neither given nor predicted'
    assert targets[-1] == eos or each.eos and not each.paired, 'targets do not end with EOS'
    same = np.array_equal(targets, tokens) and 'prefix' not in example
    assert same or not getattr(each, 'whole', False), 'whole = True; wanted: dict(decoder=tokens)'


def the_same_draws_give_the_same(name: str, **fields) -> None:
  """The same draws give the same example, and others another, where `random` says that something is drawn."""
  for each in _each(name, fields):
    for _, tokens in _texts(each):
      drawn = _drawn(each, tokens)
      assert all(map(_equal, drawn, _drawn(each, tokens))), 'the same draws give another example'
    assert not each.random or not all(_equal(drawn[0], other) for other in drawn), (
        f'random = True, and {DRAWS} draws of a text of {len(tokens)} tokens are the same')


def _each(name, fields):
  """The objectives that `name` is: itself, or one of texts and one of pairs."""
  make = lookup.constructor('objective', name)
  made = make(VOCABULARY, **generic.known(make, SIZES | fields))
  return [*made.of(dict(texts=False, pairs=True)).values()] if hasattr(made, 'of') else [made]


def _examples(name, fields):
  """(objective, numbers, tokens, example) of every text and draw."""
  for each in _each(name, fields):
    for numbers, tokens in _texts(each):
      for example in _drawn(each, tokens):
        yield each, numbers, tokens, example


def _texts(each):
  """Pairs (numbers as `lengths` has them, tokens [n]) of an objective, read-only as those of a cache."""
  ids = np.random.default_rng(0).permutation(np.arange(vocab.NUM_SPECIAL, vocab.NUM_SPECIAL + 256))
  ended = lambda ids, n: np.append(np.resize(ids, n - 1), VOCABULARY.eos_id)
  if each.paired:
    texts = [((n, m), np.concatenate([ended(ids, n), ended(ids[::-1], m)])) for n, m in PAIRS]
  else:
    numbers = [n for n in (1, 2, 3, each.segment // 2, each.segment) if 1 <= n <= each.segment]
    texts = [(n, ended(ids, n) if each.eos else np.resize(ids, n)) for n in numbers]
  texts = [(numbers, tokens.astype(caches.token_type(VOCABULARY))) for numbers, tokens in texts]
  for _, tokens in texts:
    tokens.flags.writeable = False
  return texts


def _drawn(each, tokens) -> list[dict[str, typing.Any]]:
  """Examples of a text, each of other draws, as rows of data have them."""
  draws = range(DRAWS if each.random else 1)
  return [each.example(tokens, np.random.default_rng(seed) if each.random else None) for seed in draws]


def _equal(one, other):
  return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
