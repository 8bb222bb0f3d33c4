"""The language model of LibMoE's sweeps: how its experts begin, and how its routers' losses add up."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import experiment
from stmoe import lookup
from stmoe.core.transport import layouts
from stmoe.layers import compete_smoe

D, TOKENS = 512, 16


@pytest.mark.parametrize('name, weighed', [
    ('compete_smoe/language', dict(distillation=0.001, diversity=0.005, entropy=0.01)),
    ('compete_smoe/language:losses=vision', dict(distillation=0.01, balance=0.01, z=0.001)),
    ('tc_moe/language', dict(balance=0.01, reward=1e-5)), ('x_moe/language', dict(entropy=0.01))])
def test_losses_add_up_over_layers(name, weighed):
  losses = experiment.load(name)[0].losses
  for loss, weight in weighed.items():
    assert losses[loss] == (weight, 'sum')


def test_experts_begin_as_in_the_code_whose_competitions_are_even():
  """E q is 0.999 to 1.001 with its initial values; outputs of rms 1 would have 0.91 to 1.16."""
  block = experiment.load('compete_smoe/language')[0].blocks.m.to_dict()
  experts = block['router']['num_experts']
  bank = lookup.recipe('experts', block['experts'])(D, num_experts=experts, rngs=nnx.Rngs(0))
  wide, narrow = (np.asarray(w[...]).std() for w in (bank.wi, bank.wo))
  scale = (2 / 16) ** 0.5                                            # of 16 layers
  np.testing.assert_allclose([wide, narrow], [scale / D ** 0.5, scale / (experts * 128) ** 0.5], rtol=1e-2)
  x = np.random.default_rng(0).normal(size=(TOKENS, D)).astype(np.float32)
  rows = jnp.broadcast_to(x, (experts, TOKENS, D))
  outputs = jax.jit(lambda bank, rows: bank(layouts.Buckets(rows)).x)(bank, rows)
  q = jax.nn.softmax(compete_smoe.affinity(outputs[:, None]), axis=-1)
  np.testing.assert_allclose(experts * q, 1, atol=1.5e-3)
