"""Several blocks in a turn of the loop of `blocks`: the same numbers as with one, for any counts of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe.conform import execution
from stmoe.core import assignment
from stmoe.core.transport import rows as rows_lib

E, D = execution.E, execution.D
# Rows of each expert: a last turn not full, one expert alone, none, few, as many blocks as there can be.
COUNTS = [(7, 1, 0, 13), (0, 0, 21, 0), (0, 0, 0, 0), (2, 2, 2, 2), (7, 7, 7, 7)]


def of(counts):
  """An Assignment of 28 tokens, counts[e] of them to expert e and the others nowhere, in mixed order."""
  expert = np.full(28, E)
  expert[:sum(counts)] = np.repeat(np.arange(E), counts)
  np.random.default_rng(0).shuffle(expert)
  edges = assignment.from_choices(jnp.asarray(expert)[None, :, None], jnp.ones((1, 28, 1)), E, num_virtual=1)
  return assignment.cap(edges, 28)


@pytest.mark.parametrize('counts', COUNTS)
@pytest.mark.parametrize('bank', ['mlp', 'glu'])
def test_several_blocks_a_turn_compute_what_one_does(counts, bank, monkeypatch):
  monkeypatch.setattr(walk, 'sizes', lambda *_: (2, 6))
  monkeypatch.setattr(walk, 'FEW', 0)
  a, bank = of(counts), execution.bank(bank)
  x = jax.random.normal(jax.random.key(0), (1, 28, D))
  found = []
  for together in 1, 3:
    monkeypatch.setattr(walk, 'TOGETHER', together)
    execution.run.clear_cache()
    found.append(execution.run(x, a.weight, bank, a, executor='blocks'))
  execution.same(found[1], found[0], 1e-6)
  execution.same(found[1], execution.run(x, a.weight, bank, a, executor='einsum'))


def test_a_turn_has_blocks_of_about_as_many_rows(monkeypatch):
  monkeypatch.setattr(walk, 'sizes', lambda *_: (2, 6))
  rows = rows_lib.sort(of(COUNTS[0]), falling=True)
  assert rows.start.tolist() == [13, 20, 21, 0]
  cut = walk.blocks(rows.sizes, rows.edge.size, rows.start, together=3)
  number = int(cut.number)
  assert cut.expert[:number].tolist() == [3, 3, 3, 0, 0, 1]
  assert cut.count[:number].tolist() == [6, 6, 1, 6, 1, 1]
  assert cut.expert.size % 3 == 0 and int(cut.count[number:].max()) <= 0
