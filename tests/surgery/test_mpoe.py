"""Chains of a trained bank: equal experts are kept exactly, fitting brings different ones nearer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.experts import mpo
from stmoe.surgery import layout
from stmoe.surgery import mpoe
from stmoe.surgery import sparse
from tests.surgery import trained

EXPERTS = dict(name='mlp', d_ff=12, activation='gelu', use_bias=True)
PLACE = ('decoder', 'layers', 1, 'layer', 'experts')


def matrices(blocks, name):
  """The matrices [E,D,F] that a layer's chains are in the new model."""
  tree = layout.at(blocks, (*PLACE, name))
  cores = [*(tree['left'][m] for m in sorted(tree['left'])), tree['central'],
           *(tree['right'][m] for m in sorted(tree['right']))]
  return mpo.matrices(cores)


def test_equal_experts_with_any_bond_are_kept():
  cfg = trained.config(EXPERTS)
  params = trained.params(cfg)
  equal = {}
  for block in (1, 3):
    path = ('decoder', 'layers', block, 'layer', 'experts')
    for name, array in layout.at(params, path).items():
      equal[*path, name] = jnp.broadcast_to(array[:1], array.shape)
  params = sparse.replaced(params, equal)
  after, changes = mpoe.operate(params, cfg, trained.none, keep=0.99, parts=3)
  assert changes['blocks.m.experts']['bond'] == 4                    # as wide as any: nothing is cut
  new = sparse.changed(cfg, changes)
  np.testing.assert_allclose(trained.logits(new, after), trained.logits(cfg, params), rtol=1e-4, atol=1e-4)


def test_fitting_helps_and_the_size_is_kept():
  cfg = trained.config(EXPERTS)
  params = trained.params(cfg)
  apart, sizes = [], []
  for sweeps in (0, 1, 8):
    after, changes = mpoe.operate(params, cfg, trained.none, keep=0.4, parts=3, sweeps=sweeps)
    w = layout.at(params, (*PLACE, 'wi'))
    apart.append(float(jnp.linalg.norm(matrices(after, 'wi') - w) / jnp.linalg.norm(w)))
    sizes.append(size(after) / size(params))
  assert apart[0] > apart[1] > apart[2] and max(sizes) <= 0.4 < max(sizes) + 0.15, (apart, sizes)


def size(tree):
  return sum(array.size for array in jax.tree.leaves(layout.at(tree, PLACE)))


@pytest.mark.parametrize('fields, said', [
    (dict(parts=4), 'parts=4 have no centre; nearest: parts=3, 5'),
    (dict(keep=0.01, parts=3), 'keep=0.01: chains of blocks.m with bonds of 1 are .* nearest: keep=0')])
def test_a_mistake_is_one_line(fields, said):
  cfg = trained.config(EXPERTS)
  with pytest.raises(errors.UserError, match=said) as caught:
    mpoe.operate(trained.params(cfg), cfg, trained.none, **fields)
  assert '\n' not in str(caught.value)
