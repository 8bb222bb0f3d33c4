"""Read-ME: one expert for all layers, chosen by the text so far; its loss moves the router alone."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.layers import read_me
from tests.layers import calls
from tests.models import tiny

D = 8
FIELDS = dict(d_ff=8, num_experts=3, vocab_size=tiny.VOCAB, width=4, heads=1, executor='einsum')


def build(**fields):
  return lookup.recipe('layer', dict(FIELDS, name='read_me') | fields)(D, rngs=nnx.Rngs(0))


def net(heads):
  made = read_me.Net(tiny.VOCAB, 4, heads, 2, 3, 1.0, rngs=nnx.Rngs(1))
  made.embed[...] *= 50
  return jax.jit(made.__call__)


IDS, POSITIONS = np.arange(6)[None] + 3, np.array([[0, 1, 2, 3, 0, 1]])
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2]])


@pytest.mark.parametrize('heads, moved', [(1, [2, 3]), (0, [2])])
def test_the_choice_depends_on_the_text_before_in_its_own_row(heads, moved):
  run = net(heads)
  before, after = (run(ids, POSITIONS, SEGMENTS)[0] for ids in (IDS, np.where(IDS == 5, 9, IDS)))
  assert np.flatnonzero(np.abs(after - before).max(-1) > 1e-6).tolist() == moved


def test_all_layers_have_one_net_and_a_token_one_expert():
  recipe = lookup.recipe('model', dict(name='lm', layers=(('r', 3),), **tiny.SHAPES))
  model = recipe(blocks=dict(r=dict(FIELDS, layer='read_me', attention=False)), rngs=nnx.Rngs(0))
  model.decoder.tied['read_me'].net.embed[...] *= 50
  _, aux = jax.jit(lambda model, batch: model(batch))(model, tiny.batch('lm', 3, 6))
  loads = np.stack([report.load for report in aux.values()])
  assert loads.shape == (3, 3) and (loads == loads[0]).all() and (loads[0] > 0).sum() > 1
  assert 'heads=0' in model.decoder.undecodable()
  assert build(heads=0).router.undecodable is None


def test_the_loss_moves_the_router_alone():
  layer, x = build(), calls.inputs(D)

  def loss(layer):
    ctx = calls.context(train=True, key=jax.random.key(0))
    return layer(x, ctx, layer.init_carry(x))[1].losses['pregate']
  grads = jax.jit(jax.grad(loss))(layer)
  assert jnp.abs(grads.router.net.out.w[...]).max() > 0
  assert all(jnp.abs(g).max() == 0 for g in jax.tree.leaves(nnx.state(grads.experts)))


def test_distances_count_the_largest_units():
  # Five private units: ranks 4, 4, 3, 2, 1 in falling order; the largest is above all five borders.
  hidden = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
  mask = jnp.array([[1.0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 1]])
  above = np.array([5, 4, 3, 2, 0, 0])                               # of each unit
  np.testing.assert_allclose(read_me.distances(hidden, mask), above @ mask.T / 15, rtol=1e-6)
  assert read_me.private(jnp.array([[1.0, 1, 0], [1, 0, 1]])).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_mistake_is_one_line():
  with pytest.raises(errors.UserError, match='width=6 of heads=2, .* nearest: width=4') as caught:
    build(width=6, heads=2)
  assert '\n' not in str(caught.value)
