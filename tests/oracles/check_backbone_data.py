"""Checks of the objectives on text against recorded T5 values."""

import numpy as np

from stmoe.data.text.objectives import span_corruption as corruption


def span_corruption(case):
  """The recorded noise masks are random draws, so they are inputs; counts and both sides are compared."""
  vocab_size = case.config['vocab_size']
  for i in sorted({name.split(':')[0] for name in case.names() if ':' in name}):
    n, density, length, noise, spans = case[f'{i}:config'].tolist()
    assert corruption.noise_counts(n, density / 1000, length / 1000) == (noise, spans)
    mask = case[f'{i}:noise_mask'].astype(bool)
    assert mask.sum() == noise
    inputs, targets = corruption.corrupt(case[f'{i}:tokens'], mask, lambda k: vocab_size - 1 - k)
    case.assert_close(f'{i}:inputs', inputs)
    case.assert_close(f'{i}:targets', targets)
  if 'length_table' in case:
    table = case['length_table']
    solved = [corruption.solve_length(row[0], row[1] / 1000, row[2] / 1000) for row in table.tolist()]
    np.testing.assert_array_equal(solved, table[:, 3:])
