"""Compressed experts: with vectors of ones the other choices are left out; vectors multiply by hand."""

import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.surgery import compressed_experts
from stmoe.surgery import sparse
from tests.layers import calls
from tests.surgery import trained
from tests.train import tiny_run

GATES = dict(name='deepseek_moe', num_experts=4, k=2, normalize_gates=False)


@pytest.fixture(scope='module')
def halved():
  """(config and parameters before, the same after) with one expert of two."""
  cfg = trained.config(router=GATES, layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = compressed_experts.operate(params, cfg, trained.none)
  assert changes == {'blocks.m.layer': 'compressed_experts', 'blocks.m.main': 1}
  return cfg, params, sparse.changed(cfg, changes), made


def test_at_first_the_other_choices_are_left_out(halved):
  cfg, params, new, made = halved
  first = sparse.changed(cfg, {'blocks.m.router.k': 1})
  np.testing.assert_allclose(trained.logits(new, made), trained.logits(first, params), rtol=1e-5, atol=1e-5)
  assert np.abs(trained.logits(new, made) - trained.logits(cfg, params)).max() > 1e-2


def test_vectors_are_averaged_by_the_other_gates():
  fields = dict(name='compressed_experts', main=1, executor='gather', router=GATES | dict(k=3),
                experts=dict(name='mlp', d_ff=5))
  layer = lookup.recipe('layer', fields)(6, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  vectors, x = rng.normal(size=(4, 6)), rng.normal(size=(calls.B, calls.T, 6))
  layer.compressed[...] = jnp.asarray(vectors, jnp.float32)
  y, aux = calls.call(layer, jnp.asarray(x, jnp.float32), calls.context())
  assert not aux.records and float(aux.load.sum()) == 3 * calls.B * calls.T
  w, wi, wo = (np.float64(a[...]) for a in (layer.router.inner.w, layer.experts.wi, layer.experts.wo))
  probs = np.exp(x @ w) / np.exp(x @ w).sum(-1, keepdims=True)
  for at in np.ndindex(calls.B, calls.T):
    first, *others = np.argsort(-probs[at])[:3]
    main = probs[at][first] * np.maximum(x[at] @ wi[first], 0) @ wo[first]
    factor = probs[at][others] @ vectors[others] / probs[at][others].sum()
    np.testing.assert_allclose(y[at], main * factor, rtol=1e-4, atol=1e-5)


def test_half_of_the_experts_are_active():
  cfg = tiny_run.config(pathlib.Path(), **{'blocks.m.router': GATES})
  _, changes = compressed_experts.operate(trained.params(cfg), cfg, trained.none)
  shares = [{m.path[-1]: m.share for m in flops.matrices(one) if 'experts' in m.path}
            for one in (cfg, sparse.changed(cfg, changes))]
  assert shares[0] == {name: 2 * share for name, share in shares[1].items()} == dict(wi=0.5, wo=0.5)


@pytest.mark.parametrize('router, keep, words', [
    (GATES | dict(k=1), 0.5, 'a token of blocks.m has 1 experts, of which none would'),
    (GATES, 0.8, 'keep=0.8: a token of blocks.m has 2 experts')])
def test_mistakes_are_one_line(router, keep, words):
  cfg = trained.config(router=router)
  with pytest.raises(errors.UserError, match=words):
    compressed_experts.operate({}, cfg, trained.none, keep=keep)


def test_a_layer_of_vectors_has_none_again(halved):
  _, _, new, made = halved
  with pytest.raises(errors.UserError, match="blocks.m is 'compressed_experts'"):
    compressed_experts.operate(made, new, trained.none)
