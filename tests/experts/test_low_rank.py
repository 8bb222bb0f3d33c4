"""Experts of low rank: matrices U V + S, gated or not."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core.transport import layouts
from stmoe.experts import low_rank
from tests.experts import generic

D, F, E, R = 6, 10, 3, 2
ROWS = jax.random.normal(jax.random.key(0), (E, 5, D))


@pytest.mark.parametrize('gated, sparse', [(True, True), (False, False)])
def test_the_matrices_are_the_product_plus_the_sparse_part(gated, sparse):
  bank = generic.of(low_rank.LowRank, D, E, d_ff=F, rank=R, gated=gated, sparse=sparse, activation='silu')
  whole = lambda m: jnp.einsum('eir,ero->eio', m.u[...], m.v[...]) + (m.s[...] if sparse else 0)
  h = jnp.einsum('erd,edf->erf', ROWS, whole(bank.wi)) + bank.bi[...][:, None]
  h = jax.nn.silu(h) * (jnp.einsum('erd,edf->erf', ROWS, whole(bank.wg)) if gated else 1)
  want = jnp.einsum('erf,efd->erd', h, whole(bank.wo)) + bank.bo[...][:, None]
  np.testing.assert_allclose(bank(layouts.Buckets(ROWS)).x, want, rtol=1e-4, atol=1e-5)


def test_a_rank_that_no_matrix_has_is_one_line():
  with pytest.raises(errors.UserError, match='rank=7 of matrices 6 x 10; nearest: 6'):
    low_rank.LowRank(D, num_experts=E, d_ff=F, rank=7, rngs=nnx.Rngs(0))
