"""Switch-max on an example worked by hand."""

import numpy as np
import pytest

from stmoe.routers import switch_max


@pytest.mark.slow
def test_the_smallest_gate_is_dropped(logits, edges):
  a, aux = switch_max.switch_max(logits, np.ones((1, 4), bool), 2)
  # Of the gates 0.8, 0.6, 0.7 at expert 0 the 0.6 of token 1 goes, although token 2 comes later.
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (3, 1, 0, 0.9)}
  assert aux.load.tolist() == [3, 1] and aux.metrics['drop_frac'] == 0.25
  np.testing.assert_allclose(aux.losses['balance'], 1.05, rtol=1e-6)
