"""Corrupted text: a share of the tokens of a segment becomes other tokens."""

import numpy as np

from stmoe import errors


def checked(field, share):
  """Returns `share`, a number from 0.0 to 1.0; raises UserError with the name of its field."""
  if not 0 <= share <= 1:
    raise errors.UserError(f'data.{field}={share} is a share of the tokens: at least 0.0 and at most 1.0')
  return share


def swap(tokens, share, eos, rng):
  """Returns `tokens` with a `share` of them replaced by tokens drawn from the text of the segment itself.

  So a wrong token is as frequent as the same token in the text. Every place is drawn by itself. EOS stays
  where it is and comes nowhere else, so that documents and pairs keep their ends. A place may draw its own
  token.

  Args:
    tokens: [n] ids.
    share:  probability of a place to be replaced.
    eos:    id.
    rng:    numpy generator.
  """
  words = np.flatnonzero(tokens != eos)
  hit = words[rng.random(len(words)) < share]
  if not len(hit):
    return tokens
  swapped = np.array(tokens)
  swapped[hit] = tokens[words[rng.integers(0, len(words), len(hit))]]
  return swapped
