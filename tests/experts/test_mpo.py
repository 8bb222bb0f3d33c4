"""Experts whose matrices are chains of tensors around one that they share."""

import functools

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.configs.mpoe import paper
from stmoe.experts import mpo


def test_with_bonds_of_one_a_matrix_is_a_kronecker_product():
  chain = mpo.Chain(3, (2, 1, 3), (1, 4, 2), 1, 1.0, rngs=nnx.Rngs(0))
  cores = [chain.left[0], chain.central, chain.right[0]]
  for e, w in enumerate(chain()):
    parts = [np.asarray(core[...] if core.ndim == 4 else core[e])[0, :, :, 0] for core in cores]
    np.testing.assert_allclose(w, functools.reduce(np.kron, parts), rtol=1e-5)


def test_published_factors_and_sizes():
  # The example of the notes on arXiv:2203.01104: most of 768 x 3072 is in the central tensor.
  inward, outward = mpo.factors(768, 5), mpo.factors(3072, 5)
  assert (inward, outward) == ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
  widths = mpo.bonds(inward, outward)
  sizes = [a * i * o * b for a, i, o, b in zip(widths, inward, outward, widths[1:])]
  assert sizes == list(paper.TENSORS) and widths == paper.BONDS
  for width, (narrow, wide) in paper.FACTORS.items():
    assert (mpo.factors(width, 5), mpo.factors(4 * width, 5)) == (narrow, wide)


def test_entries_begin_with_the_variance_asked_for():
  chain = mpo.Chain(64, (2, 2, 4), (4, 4, 2), None, 2.0, rngs=nnx.Rngs(1))
  assert 0.7 < float(jnp.var(chain())) / (2.0 / 16) < 1.4


def test_factors_must_multiply_to_the_width():
  with pytest.raises(errors.UserError, match=r'inward=\(2, 3, 2\) are no factors of 8.*nearest: \(2, 2, 2\)'):
    mpo.Mpo(8, num_experts=2, d_ff=12, inward=(2, 3, 2), outward=(2, 3, 2), rngs=nnx.Rngs(0))
