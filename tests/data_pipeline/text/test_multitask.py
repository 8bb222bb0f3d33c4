"""Translation and denoising in one mixture: what each task's rows are, tags, weights and mistakes."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data.text import vocab
from stmoe.data.text.objectives import denoising

VOCAB = vocab.Bytes(extra_ids=2)
MASK = VOCAB.sentinel(0)
RNG = lambda seed=0: np.random.default_rng(seed)


def noised(noise, n=40, **fields):
  task = denoising.Denoising(VOCAB, **dict(inputs_length=48, targets_length=48, noise=noise) | fields)
  tokens = np.arange(n, dtype=np.int32) + 10
  example = task.example(tokens, RNG())
  inputs, targets = example['encoder'], example['decoder']
  assert inputs[-1] == targets[-1] == VOCAB.eos_id
  np.testing.assert_array_equal(targets[:-1], tokens)                # the whole text is written again
  assert [len(inputs), len(targets)] == task.lengths([n])[0].tolist()
  return inputs[:-1], tokens


@pytest.mark.parametrize('noise, masks', [('infill', 4), ('mask', 14), ('delete', 0)])
def test_noise_is_what_it_says(noise, masks):
  inputs, tokens = noised(noise)                                     # 0.35 of 40 in spans of 3.5 on average
  assert (inputs == MASK).sum() == masks
  kept = inputs[inputs != MASK]
  assert len(kept) == 26 and (np.diff(kept) > 0).all() and set(kept) <= set(tokens)
  if noise == 'mask':                                                # every token in its place
    np.testing.assert_array_equal(tokens[inputs != MASK], kept)


@pytest.mark.parametrize('noise, segment', [('infill', 19), ('mask', 15), ('delete', 19)])
def test_segments_fit_both_rows(noise, segment):
  task = denoising.Denoising(VOCAB, inputs_length=16, targets_length=20, noise=noise)
  assert task.segment == segment and (task.lengths([segment])[0] <= (16, 20)).all()
  assert task.lengths([1])[0].tolist() == [2, 2]                     # a single token is never noise


@pytest.fixture
def sides(tmp_path):
  """A file of sources and one of targets; line i of one translates line i of the other."""
  paths = [tmp_path / name for name in ('a', 'b')]
  for path, word in zip(paths, ('eins', 'one')):
    path.write_text(''.join(f'{word} {i}\n' for i in range(60)))
  return list(map(str, paths))


def config_of(config, sides, **fields):
  data = dict(objective='multitask', task='', files=tuple(sides), extra_ids=2, join=False, pack=False,
              inputs_length=24, targets_length=24, mixture=(('pairs', 2.0), ('text', 1.0)),
              tags=('pairs=<b>',), mixture_temperature=1.0)
  return config(**data | fields)


def texts(batch, side):
  ids = batch[f'{side}_input_tokens' if side == 'encoder' else 'decoder_target_tokens']
  return [VOCAB.decode(row) for row in ids]


def test_pairs_are_translated_and_texts_denoised(config, sides):
  data = pipeline.train_iterator(config_of(config, sides))
  batches = [next(data) for _ in range(6)]
  data.close()
  rows = [row for batch in batches for row in zip(texts(batch, 'encoder'), texts(batch, 'decoder'))]
  pairs = [(source, target) for source, target in rows if source.startswith('<b>')]
  assert len(pairs) == 32 and len(rows) == 48                        # two of three rows
  for source, target in pairs:
    assert source == f'<b>eins {target.removeprefix("one ")}' and target.startswith('one ')
  # Bytes that are no noise stand in both; the masks are no bytes, so that decoding drops them.
  assert all('<b>' not in source and len(source) < len(target)
             for source, target in rows if not source.startswith('<b>'))
  assert next(iter(pipeline.eval_batches(config_of(config, sides))))['decoder_loss_weights'].any()


def test_a_temperature_evens_the_sizes_out(config, sides):
  names = ('pairs', 'text')
  weights = lambda **fields: pipeline.source(config_of(config, sides, mixture=names, **fields)).weights
  assert weights(mixture_cap=100) == [57.0, 2.0] and weights(mixture_cap=8) == [8.0, 2.0]
  np.testing.assert_allclose(weights(mixture_temperature=5.0), [57 ** 0.2, 2 ** 0.2])
  with pytest.raises(errors.UserError, match='they need data.mixture_cap'):
    weights()


@pytest.mark.parametrize('fields, said', [
    (dict(tags=('pair=<b>',)), "no task 'pair'; nearest: pairs"),
    (dict(tags=('<b>',)), "nearest: '<b>=<de>'"),
    (dict(tags=('text=' + 'x' * 30,)), 'has 30 tokens, and data.inputs_length=24 leaves no room'),
    (dict(extra_ids=0), 'data.extra_ids=0: the mask of noise is a sentinel; nearest: 1'),
    (dict(join=True), 'needs data.join=False')])
def test_mistakes(config, sides, fields, said):
  with pytest.raises(errors.UserError, match=said):
    pipeline.train_iterator(config_of(config, sides, **fields))
