"""Rows: the arrays of seqio's converters, and packing that keeps every example once and whole."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from stmoe.data.text import pack


def row(limits, examples, prefix=False):
  batch = pack.empty(limits, 1, prefix)
  pack.fill(batch, 0, examples)
  return {name: value[0].tolist() for name, value in batch.items()}


def test_a_packed_encoder_decoder_row():
  found = row(dict(encoder=8, decoder=7), [dict(encoder=np.array([7, 8, 1]), decoder=np.array([3, 9, 1])),
                                           dict(encoder=np.array([8, 4, 1]), decoder=np.array([4, 1]))])
  assert found == dict(
      encoder_input_tokens=[7, 8, 1, 8, 4, 1, 0, 0], encoder_segment_ids=[1, 1, 1, 2, 2, 2, 0, 0],
      encoder_positions=[0, 1, 2, 0, 1, 2, 0, 0], decoder_target_tokens=[3, 9, 1, 4, 1, 0, 0],
      decoder_input_tokens=[0, 3, 9, 0, 4, 0, 0], decoder_loss_weights=[1, 1, 1, 1, 1, 0, 0],
      decoder_segment_ids=[1, 1, 1, 2, 2, 0, 0], decoder_positions=[0, 1, 2, 0, 1, 0, 0])


def test_prefix_rows_are_those_of_seqio():
  # The example in the docstring of seqio's PrefixLMFeatureConverter.
  found = row(dict(decoder=15), [dict(decoder=np.array([7, 8, 5, 1, 3, 9, 1]), prefix=4),
                                 dict(decoder=np.array([8, 4, 9, 3, 1, 4, 1]), prefix=5)], prefix=True)
  assert found == dict(
      decoder_target_tokens=[7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
      decoder_input_tokens=[0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0],
      decoder_loss_weights=[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
      decoder_positions=[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
      decoder_segment_ids=[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
      decoder_causal_attention=[1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0])


def test_each_segment_starts_with_the_model_s_own_id():
  batch = pack.empty(dict(decoder=6), 1)
  pack.fill(batch, 0, [dict(decoder=[4, 5, 6]), dict(decoder=[7])], start=9)
  assert batch['decoder_input_tokens'][0].tolist() == [9, 4, 5, 9, 0, 0]


def test_the_first_targets_of_every_segment_may_have_no_loss():
  batch = pack.empty(dict(decoder=9), 1, prefix=True)
  examples = [dict(decoder=np.array([7, 8, 5, 1])), dict(decoder=np.array([8, 4, 9, 1]), prefix=3)]
  pack.fill(batch, 0, examples, unscored=2)
  assert batch['decoder_loss_weights'][0].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0]
  assert batch['decoder_causal_attention'][0].tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 0]    # not given
  assert batch['decoder_target_tokens'][0].tolist() == [7, 8, 5, 1, 8, 4, 9, 1, 0]


@given(st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8)), max_size=300))
def test_every_example_is_in_one_row_that_has_room(lengths):
  rows = pack.plan(lengths, (16, 8))
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  for row in rows:
    assert (np.sum([lengths[i] for i in row], axis=0) <= (16, 8)).all()


def test_packing_fills_the_oldest_row_with_room():
  assert pack.plan([[6], [5], [3], [2], [4]], [8]) == [[0, 3], [1, 2], [4]]


def test_packing_wastes_little():
  lengths = np.random.default_rng(0).integers(1, 65, (3000, 1))
  rows = pack.plan(lengths, [64])
  assert len(rows) < 1.08 * lengths.sum() / 64
