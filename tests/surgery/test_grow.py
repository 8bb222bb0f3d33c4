"""Grown networks: the averaged function is kept exactly, coefficients begin as they are said to."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import grow
from stmoe.surgery import sparse
from tests.surgery import trained

GLU = dict(name='glu', d_ff=6)


@pytest.mark.parametrize('experts', [trained.MLP, GLU])
def test_pairs_of_equal_experts_grow_without_a_change(experts):
  cfg = trained.config(experts)
  params = trained.params(cfg)
  made = {}
  for block in (1, 3):
    path = ('decoder', 'layers', block, 'layer', 'experts')
    made |= {(*path, name): jnp.repeat(array[0::2], 2, 0)
             for name, array in params['decoder']['layers'][block]['layer']['experts'].items()}
  params = sparse.replaced(params, made)
  after, changes = grow.operate(params, cfg, trained.none)
  assert changes['blocks.m.experts.d_ff'] == 12 and changes['blocks.m.router']['num_experts'] == 2
  before = trained.logits(cfg, params)
  grown = trained.logits(sparse.changed(cfg, changes), after)
  np.testing.assert_allclose(grown, before, rtol=1e-4, atol=1e-4)


def test_a_grown_expert_is_the_mean_of_its_two():
  x, rng = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1)
  wi, wo = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 3))
  network = lambda wi, wo: np.maximum(x @ wi, 0) @ wo
  want = (network(wi[0], wo[0]) + network(wi[1], wo[1])) / 2
  names = 'expert', 'expert_embed', 'expert_mlp'
  whole = grow.paired(jnp.asarray(wi), names)[0], grow.paired(jnp.asarray(wo), (names[0], *names[:0:-1]))[0]
  np.testing.assert_allclose(network(*map(np.asarray, whole)), want, rtol=1e-5, atol=1e-6)
  # The same of the grown weights: both halves of the input are x, those of the output are averaged.
  zero = np.zeros_like(wi[0].T)
  first = grow.grown(np.stack([wi[0].T, wi[1].T, zero, zero]))
  second = grow.grown(np.stack([wo[0].T, wo[1].T, zero.T, zero.T]))
  y = np.maximum(np.concatenate([x, x], 1) @ first.T, 0) @ second.T
  np.testing.assert_allclose((y[:, :3] + y[:, 3:]) / 2, want)


def test_new_coefficients():
  known = np.random.default_rng(0).normal(size=(2, 4))
  made = {begin: grow.coefficients(known, begin, noise=0.01) for begin in grow.BEGIN}
  for alpha in made.values():
    assert alpha.shape == (4, 4) and (alpha[:2] == known).all()
  assert 0 < np.abs(made['copy'][2:] - known).max() < 0.1 and not made['zero'][2:].any()
  gram = made['orthogonal'] @ made['orthogonal'].T
  np.testing.assert_allclose(gram[2:], np.eye(4)[2:], atol=1e-12)
  with pytest.raises(errors.UserError, match="begin='zeros'; nearest: zero"):
    grow.coefficients(known, 'zeros')


def test_a_mistake_is_one_line():
  cfg = trained.config()
  params = trained.params(cfg)
  with pytest.raises(errors.UserError, match='keep=0.25: pairs of experts .* nearest: keep=0.5'):
    grow.operate(params, cfg, trained.none, keep=0.25)
  same, changes = grow.operate(params, cfg, trained.none, keep=1.0)
  assert same is params and not changes
