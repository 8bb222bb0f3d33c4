"""FactorLLM: the teacher's states do not see the chunks, its losses move the router alone."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.layers import factor_llm
from tests.layers import calls
from tests.models import tiny

D = 8
LAYER = dict(layer='factor_llm', d_ff=8, num_experts=4, activation='gelu', gated=False, executor='einsum')


def build(**fields):
  known = {key: value for key, value in LAYER.items() if key != 'layer'} | dict(name='factor_llm')
  return lookup.recipe('layer', known | fields)(D, rngs=nnx.Rngs(0))


@pytest.fixture(scope='module')
def model():
  """A model of two such blocks beside their teachers, large enough numbers, and its losses as a function."""
  blocks = dict(f=LAYER | dict(around=dict(name='factor_llm')))
  recipe = lookup.recipe('model', dict(name='lm', layers=(('f', 2),), scan_layers=False, **tiny.SHAPES))
  model, batch = recipe(blocks=blocks, rngs=nnx.Rngs(0)), tiny.batch('lm', 2, 6)
  first = model.decoder.segments[0][0].blocks[0].layer

  @jax.jit
  def prior(model):
    _, reports = model(batch, key=jax.random.key(0), train=True)
    return {name: aux.losses['prior'] for name, aux in reports.items()}

  def changed(part):
    """The losses with the numbers of a part of the first layer twice as large."""
    twice = jax.tree.map(lambda a: 2 * a, nnx.state(getattr(first, part)))
    before = nnx.state(getattr(first, part))
    nnx.update(getattr(first, part), twice)
    values = prior(model)
    nnx.update(getattr(first, part), before)
    return values
  return prior(model), changed


def test_the_teacher_above_sees_the_dense_network_below_and_not_its_chunks(model):
  before, changed = model
  after = changed('experts')
  assert after['decoder_00'] != before['decoder_00'] and after['decoder_01'] == before['decoder_01']
  assert changed('teacher')['decoder_01'] != before['decoder_01']


def test_only_the_router_has_a_gradient_and_all_losses_are_of_training():
  layer, x = build(prior='own'), calls.inputs(D)

  def losses(layer, train):
    return layer(x, calls.context(train=train, key=jax.random.key(0)), {})[1].losses
  grads = jax.jit(jax.grad(lambda layer: sum(losses(layer, True).values())))(layer)
  assert jnp.abs(grads.router.w[...]).max() > 0 and not losses(layer, False)
  for part in (grads.experts, grads.teacher):
    assert all(jnp.abs(g).max() == 0 for g in jax.tree.leaves(nnx.state(part)))
  assert layer.router.needs_loss == ('prior',) and build(prior='none').router.needs_loss == ()
  assert build(prior='none').teacher is None


def test_labels_name_the_nearest_chunks_and_the_subset_with_the_nearest_sum():
  # Three chunks of one number; the whole is 3, half of it 3 // (3 // 2) = 3.
  chunks, whole = jnp.array([[[2.0]], [[4.5]], [[-1.5]]]), jnp.array([[3.0]])
  assert factor_llm.nearest(chunks, whole, 2).tolist() == [[1, 1, 0]]
  assert factor_llm.subset(chunks, whole, 2).tolist() == [[0, 1, 1]]  # 4.5 - 1.5
  logits = jnp.array([1.0, 1.0, 0.0])
  np.testing.assert_allclose(factor_llm.prior_loss(logits, jnp.array([1.0, 1.0, 0.0])), 0, atol=1e-7)


@pytest.mark.parametrize('fields, said', [
    (dict(num_experts=3), 'num_experts=3 chunks of d_ff=8; nearest: d_ff=6'),
    (dict(k=5), 'k=5 with num_experts=4'),
    (dict(gated=True, use_bias=True), 'use_bias=True .* nearest: False')])
def test_a_mistake_is_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    build(**fields)
  assert '\n' not in str(caught.value)
