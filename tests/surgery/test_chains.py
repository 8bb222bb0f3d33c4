"""Matrices as chains of tensors: what bonds can hold."""

import math

import jax.numpy as jnp
import numpy as np

from stmoe.experts import mpo
from stmoe.surgery import chains


def test_full_bonds_hold_any_matrix_and_cut_ones_nearly():
  factors = (2, 3, 2), (2, 2, 1)
  w = np.random.default_rng(0).normal(size=[math.prod(one) for one in factors])
  error = {}
  for most in (None, 4, 2):
    cores = chains.decompose(jnp.asarray(w, jnp.float32), *factors, most)
    assert (*(core.shape[0] for core in cores), 1) == mpo.bonds(*factors, most)
    error[most] = np.linalg.norm(mpo.matrices(cores)[0] - w) / np.linalg.norm(w)
  assert error[None] < 1e-5 and 0 <= error[4] < error[2] < 1


def test_a_matrix_of_low_rank_is_cut_without_an_error():
  w = jnp.outer(jnp.arange(12.0), jnp.ones(4))
  cores = chains.decompose(w, (2, 3, 2), (2, 2, 1), 3)               # all further values are 0
  np.testing.assert_allclose(mpo.matrices(cores)[0], w, atol=1e-4)
