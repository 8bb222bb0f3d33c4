"""MoEUT's layer: what router and experts read, the entropy over passes. Its numbers: tests/oracles."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.layers import moeut
from tests.layers import calls

FIELDS = dict(name='moeut', router=dict(name='sigma_moe', num_experts=3, k=2), executor='einsum',
              experts=dict(name='mlp', d_ff=4))


def build(tied_as=''):
  layer = lookup.recipe('layer', FIELDS)(8, rngs=nnx.Rngs(0))
  layer.router.w[...] *= 10
  layer.tied_as = tied_as
  return layer


def test_the_router_reads_the_norm_and_experts_do_not():
  layer, x, ctx = build(), calls.inputs(8), calls.context()
  y, aux = calls.call(layer, x, ctx)
  twice, other = calls.call(layer, 2 * x, ctx)
  np.testing.assert_allclose(twice, 2 * y, rtol=1e-3, atol=1e-5)     # ReLU experts without biases
  assert aux.load.tolist() == other.load.tolist() and layer.init_carry(x) == {}


def test_the_loss_of_passes_is_of_their_mean():
  layer, ctx = build('block_a'), calls.context(mask=jnp.arange(calls.T) < jnp.array([[6], [4]]),
                                               tokens=jnp.float32(10))
  run = jax.jit(lambda x, carry: layer(x, ctx, carry)[1:])
  inputs = [calls.inputs(8, seed) for seed in range(3)]
  carry, losses = layer.init_carry(inputs[0]), []
  for x in inputs:
    aux, carry = run(x, carry)
    losses.append(aux.losses['entropy'])
  p = jax.nn.softmax(jnp.stack([layer.norm(x) @ layer.router.w[...] for x in inputs]), axis=-1)
  first, second = p[:, 0].mean(axis=(0, 1)), p[:, 1, :4].mean(axis=(0, 1))         # [E] of each sequence
  entropy = lambda q: jnp.sum(q * jnp.log(q))
  np.testing.assert_allclose(np.mean(losses), 0.6 * entropy(first) + 0.4 * entropy(second), rtol=1e-4)
  np.testing.assert_allclose(losses[0], calls.call(build(), inputs[0], ctx)[1].losses['entropy'], rtol=1e-4)


def test_two_passes_that_share_the_work_are_as_good_as_one_balanced_pass():
  logits = 50.0 * jnp.eye(2)[jnp.zeros((2, calls.T), int)][:, :, None]  # [B, T, 1, 2]: expert 0
  ctx, carry = calls.context(), moeut.memory('a', calls.inputs(8), 1, 2)
  aux = calls.call(build(), calls.inputs(8), ctx)[1]
  one, carry = moeut.over_passes(aux, logits, ctx, carry, 'a')
  two, _ = moeut.over_passes(aux, -logits, ctx, carry, 'a')
  np.testing.assert_allclose([one.losses['entropy'], two.losses['entropy']], [0, -2 * np.log(2)], atol=1e-5)


@pytest.mark.slow
def test_layers_in_common_cost_what_layers_with_arrays_of_their_own_do():
  tied, apart = (experiment.load(f'moeut/sizes:smoke{arg}')[0] for arg in ('', ',method=unshared'))
  assert flops.active_per_token(tied) == flops.active_per_token(apart)
  embedded = 2 * 384 * 64 + 64                                       # and the last norm
  total = [flops.parameters(cfg)['total'] - embedded for cfg in (tied, apart)]
  assert total[1] == 2 * total[0]
