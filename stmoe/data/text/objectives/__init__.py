"""Objectives: what is given and what is to be predicted of a segment of text, a file each.

An objective is made of a vocabulary and of fields of section `data`. Its class has
  eos      whether documents carry their EOS in the stream
  paired   whether a segment is a source and its target, whole
  prefix   whether part of a row is given
  random   whether it draws
  sides    the field that is the row length of each stack
  whole    whether every token of the text is predicted; absent = no.

Its objects have `limits` (row lengths by stack) and `segment` (the most tokens of a segment, where segments
are not pairs). They also have `lengths(n) -> [k,sides]` and `example(tokens, rng) -> dict` for pack.fill.
Random draws come from the numpy generator `rng`. An objective that differs between tasks has `of(paired)`,
which returns dict task -> objective for dict task -> whether the task is of pairs.
"""

import numpy as np

from stmoe import errors


def positive(length):
  """Returns `length`; raises UserError unless it is at least 1."""
  if length < 1:
    raise errors.UserError(f'data.length={length} must be at least 1')
  return length


def of_one(n):
  """Returns [k,1] row places that segments of n [k] tokens take in one stack: the method `lengths`."""
  return np.asarray(n)[:, None]


def cut(tokens, limit, eos):
  """Returns `tokens` with at most `limit` of them, the EOS at their end kept."""
  return tokens if len(tokens) <= limit else np.append(tokens[:limit - 1], eos)
