"""Rows: several examples side by side in arrays of fixed length, told apart by segment ids."""

import numpy as np

OPEN = 32  # rows that still take examples while packing


def plan(lengths, limits):
  """Returns a list of rows, each a list of example numbers, by first fit in the order given.

  Args:
    lengths: i64[n,F] the lengths of an example in each of F features, none above its limit.
    limits: F row lengths.
  An example goes to the first of the OPEN oldest unfinished rows with room in every feature. When
  no row has room, the oldest is finished and a new row begun. Every example is in exactly one row.
  """
  rows, opened = [], [None] * OPEN                                   # oldest first
  rooms = np.full((OPEN, len(limits)), -1)                           # of the open rows; -1: none yet
  for i, need in enumerate(np.asarray(lengths)):
    fits = (rooms >= need).all(axis=1)
    at = fits.argmax()
    if fits[at]:
      rooms[at] -= need
      opened[at].append(i)
    else:
      rooms[:-1], rooms[-1] = rooms[1:].copy(), limits - need
      opened = opened[1:] + [[i]]
      rows.append(opened[-1])
  return rows


def empty(limits, batch_size, prefix=False):
  """Returns the arrays of a batch without tokens: i32[batch_size, limit] under seqio's names.

  Args:
    limits: dict(decoder=length) or dict(encoder=length, decoder=length).
    prefix: whether rows have a part that is fully visible (decoder_causal_attention).
  """
  names = ['decoder_target_tokens', 'decoder_input_tokens', 'decoder_loss_weights', 'decoder_segment_ids',
           'decoder_positions'] + ['decoder_causal_attention'] * prefix
  if 'encoder' in limits:
    names += ['encoder_input_tokens', 'encoder_segment_ids', 'encoder_positions']
  return {name: np.zeros((batch_size, limits[name.split('_')[0]]), np.int32) for name in names}


def fill(batch, row, examples, unscored=0, start=0):
  """Writes examples side by side into row `row` of `batch`.

  An example is dict(decoder=targets, encoder=inputs or absent, prefix=number of first targets that
  are given). Given targets have no loss, and are visible to all of the segment up to the place where the
  first predicted token is read. Inputs of the decoder are its targets shifted right by one, from id `start`,
  in each segment by itself. Segment ids count from 1; positions from 0 in each segment. There is no loss
  on the first `unscored` targets of a segment either, which are not given.
  """
  at = {'encoder': 0, 'decoder': 0}
  for segment, example in enumerate(examples, 1):
    for side in ('encoder', 'decoder'):
      if side not in example:
        continue
      ids = example[side]
      begin, end = at[side], at[side] + len(ids)
      at[side] = end
      batch[f'{side}_segment_ids'][row, begin:end] = segment
      batch[f'{side}_positions'][row, begin:end] = np.arange(len(ids))
      if side == 'encoder':
        batch['encoder_input_tokens'][row, begin:end] = ids
      else:
        given = example.get('prefix', 0)
        batch['decoder_target_tokens'][row, begin:end] = ids
        batch['decoder_input_tokens'][row, begin:begin + 1] = start
        batch['decoder_input_tokens'][row, begin + 1:end] = ids[:-1]
        batch['decoder_loss_weights'][row, begin + max(given, unscored):end] = 1
        if 'decoder_causal_attention' in batch:
          batch['decoder_causal_attention'][row, begin:min(begin + given + 1, end)] = 1
