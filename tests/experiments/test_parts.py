"""The parts of a layer's time that experiments/kernels lists: all run, and the loop's add up to it."""

import pytest

from stmoe.bench import shapes
from stmoe.experiments.kernels import parts


def test_every_part_runs():
  variants, padding = parts.runs(shapes.Shape('tiny', 128, 16, 64, 4, 2, gated=False, dtype='float32'))
  assert padding >= 1 and set(variants) >= {'floor', 'split', 'layer', 'experts', 'experts, few results'}
  for run in variants.values():
    run()


def test_parts_of_the_loop_are_what_it_takes():
  ms = {'floor': 40., 'split': 40., 'layer': 60., 'router': 3., 'table': 1., 'sum': 1., 'experts': 50.,
        'experts, few results': 47.}
  found = parts.table(ms, 1.1)
  assert sum(found[part] for part in (
      'products, all at a time', 'rows padded', 'one by one, matrices copied',
      'results padded and placed')) == pytest.approx(50)
  assert found['results padded and placed'] == 3 and found['rows padded'] == pytest.approx(4)
