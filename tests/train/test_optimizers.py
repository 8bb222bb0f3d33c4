"""Optimizers: factoring by axis names, stacked equals unstacked, masks, clipping, names of mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.train import adafactor
from stmoe.train import optimizers

KEY = jax.random.key(0)


def train(optimizer, params, grads, rate=0.01):
  """Returns the parameters after one step per entry of `grads`."""
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for g in grads:
    params, state = update(g, state, params, jnp.float32(rate))
  return params


def arrays(shape, scale=1.0, steps=3):
  """Returns (parameter, one gradient per step)."""
  keys = jax.random.split(KEY, steps + 1)
  return scale * jax.random.normal(keys[0], shape), [jax.random.normal(k, shape) for k in keys[1:]]


@pytest.mark.parametrize('names, shape, row, column', [
    (('vocab', 'embed'), (300, 200), (1,), (0,)),   # both >= 128: the smaller side is the row
    (('embed', 'mlp'), (64, 300), (), ()),                           # one side is small: not factored
    (('embed',), (300,), (), ()),
    (('layers', 'embed'), (4, 300), (), ()),
    (('layers', 'embed', 'mlp'), (4, 128, 256), (1,), (2,)),
    (('layers', 'embed', 'mlp'), (4, 64, 256), (), ()),              # as one layer of it
    (('expert', 'expert_embed', 'expert_mlp'), (512, 16, 24), (1,), (2,)),   # never across experts
    (('layers', 'expert', 'expert_mlp', 'expert_embed'), (2, 8, 16, 24), (3,), (2,)),
    (('layers', 'embed', 'heads', 'kv'), (2, 16, 4, 8), (1,), (2, 3)),
    (('layers', 'embed', 'unmodeled'), (2, 256, 256), (1,), (2,)),   # one layer is a matrix: by its size
    (('heads', 'relpos_buckets'), (12, 32), (), ()),
])
def test_plan(names, shape, row, column):
  plan = adafactor.plan(names, shape)
  assert (plan.row, plan.column) == (row, column)
  assert plan.mean == tuple(i for i, n in enumerate(names) if n not in ('layers', 'expert'))


def test_rows_columns_and_something_else_is_an_error():
  with pytest.raises(ValueError, match='neither'):
    adafactor.plan(('expert', 'embed', 'mlp', 'unmodeled'), (2, 3, 4, 5))


@pytest.mark.parametrize('shape, names, limit', [
    ((3, 16, 24), ('embed', 'mlp'), 8), ((3, 16, 24), ('embed', 'mlp'), 128), ((3, 16), ('embed',), 8)])
@pytest.mark.parametrize('options', [{}, dict(momentum=0.9, weight_decay=0.01)], ids=str)
def test_stacked_layers_equal_separate_ones(shape, names, limit, options):
  # Slices of very different size: one clipping or one scale for all of them would show.
  scale = jnp.array([1.0, 0.01, 30.0]).reshape(3, *[1] * (len(shape) - 1))
  param, grads = arrays(shape)
  param, grads = param * scale, [g * scale ** 2 for g in grads]
  make = lambda n, p: optimizers.adafactor({'w': n}, {'w': p}, min_dim_size_to_factor=limit, **options)
  stacked = train(make(('layers', *names), param), {'w': param}, [{'w': g} for g in grads])['w']
  for i in range(3):
    alone = train(make(names, param[i]), {'w': param[i]}, [{'w': g[i]} for g in grads])['w']
    np.testing.assert_allclose(stacked[i], alone, rtol=1e-6, atol=0)


def test_stacked_experts_equal_separate_ones():
  param, grads = arrays((2, 16, 24))
  scale = jnp.array([1.0, 0.01])[:, None, None]
  make = lambda n, p: optimizers.adafactor({'w': n}, {'w': p}, min_dim_size_to_factor=8)
  names = ('expert', 'expert_embed', 'expert_mlp')
  bank = train(make(names, param), {'w': param * scale}, [{'w': g} for g in grads])
  for i in range(2):
    alone = train(make(('expert_embed', 'expert_mlp'), param[i]), {'w': param[i] * scale[i]},
                  [{'w': g[i]} for g in grads])
    np.testing.assert_allclose(bank['w'][i], alone['w'], rtol=1e-6)


def test_adafactor_moves_by_the_rate_relative_to_the_parameter():
  # First step: beta2 = 0, so g / sqrt(g^2) = sign(g), RMS 1, not clipped; step = rate * RMS(param).
  param = jnp.full((4,), 2.0)
  grad = jnp.array([5.0, -1.0, 2.0, 9.0])
  new = train(optimizers.adafactor({'w': ('embed',)}, {'w': param}), {'w': param}, [{'w': grad}])
  np.testing.assert_allclose(new['w'], [1.98, 2.02, 1.98, 1.98], rtol=1e-6)


def test_adamw_is_optax_with_matrices_decayed():
  names = {'w': ('layers', 'embed', 'mlp'), 'scale': ('layers', 'embed'),
           'bank': ('expert', 'expert_embed', 'expert_mlp'), 'bias': ('expert', 'expert_mlp'),
           'spatial': ('heads', 'length', 'length')}
  assert optimizers.decayed(names) == {'w': True, 'scale': False, 'bank': True, 'bias': False,
                                       'spatial': False}
  params = {n: arrays((2, 3, 4)[:len(a)])[0] for n, a in names.items()}
  grads = [{n: arrays(p.shape)[1][i] for n, p in params.items()} for i in range(3)]
  mine = train(optimizers.adamw(names, params, b1=0.9, b2=0.95, weight_decay=0.1), params, grads)
  theirs = optax.adamw(0.01, b1=0.9, b2=0.95, weight_decay=0.1, mask=optimizers.decayed(names))
  state = theirs.init(params)
  for g in grads:
    updates, state = theirs.update(g, state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mine, params)


def test_sgd_with_momentum():
  # Momentum 0.5, gradient 1 twice: steps of 1, then 1.5; rate 0.1.
  optimizer = optimizers.sgd({'w': ('embed',)}, {}, momentum=0.5)
  new = train(optimizer, {'w': jnp.zeros(2)}, [{'w': jnp.ones(2)}] * 2, 0.1)
  np.testing.assert_allclose(new['w'], [-0.25, -0.25], rtol=1e-6)


def test_names_of_the_state_have_its_structure():
  names = {'w': ('layers', 'embed', 'mlp'), 's': ('embed',), 'b': ('expert', 'expert_embed', 'expert_mlp')}
  params = {'w': jnp.zeros((2, 16, 32)), 's': jnp.zeros(16), 'b': jnp.zeros((4, 16, 32))}
  for make, options in ((optimizers.adamw, {}), (optimizers.sgd, {}), (optimizers.adafactor, {}),
                        (optimizers.adafactor, dict(momentum=0.9, min_dim_size_to_factor=8))):
    optimizer = make(names, params, **options)
    state = optimizer.init(params)
    ranks = jax.tree.map(lambda n: len(n), optimizer.names, is_leaf=lambda n: isinstance(n, tuple))
    assert ranks == jax.tree.map(lambda x: x.ndim, state)
  assert optimizer.names['slots']['b']['v_row'] == ('expert', 'expert_embed')
  assert state['slots']['b']['v_col'].shape == (4, 32)


def test_clip_keeps_small_gradients_and_shrinks_large_ones():
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}             # norm 5
  np.testing.assert_allclose(optimizers.clip(grads, 5.0, 10.0)['b'], [4.0])
  np.testing.assert_allclose(optimizers.clip(grads, 5.0, 1.0)['b'], [0.8])


@pytest.mark.parametrize('section, message', [
    (dict(name='adamv'), r"optimizer.name='adamv' does not exist; nearest: adamw"),
    (dict(name='clip'), "'clip' does not exist"),
    (dict(name='adamw', beta1=0.9), r"no field 'beta1'; nearest: b1"),
    (dict(name='adamw', wieght_decay=0.9), r"no field 'wieght_decay'; nearest: weight_decay")])
def test_wrong_names_are_user_errors(section, message):
  with pytest.raises(errors.UserError, match=message):
    lookup.bind(optimizers, 'optimizer', section)


def test_adafactor_before_its_offset_is_as_at_it():
  """A negative number has no power of -0.8: the parameters became NaN."""
  param, grad = jnp.arange(1.0, 4.0), jnp.array([0.1, -0.2, 0.3])
  make = lambda offset: optimizers.adafactor({'w': ('embed',)}, {'w': param}, step_offset=offset)
  early, first = (train(make(offset), {'w': param}, [{'w': grad}])['w'] for offset in (5, 0))
  np.testing.assert_array_equal(early, first)


@pytest.mark.parametrize('make, options', [
    (optimizers.adamw, dict(average=0.9)), (optimizers.adabelief, {}), (optimizers.sgd, dict(momentum=0.9)),
    (optimizers.adafactor, dict(momentum=0.9))], ids=lambda value: getattr(value, '__name__', ''))
def test_what_does_not_move_stays_as_it_was(make, options):
  params = {'w': jnp.ones((2, 3))}
  optimizer = make({'w': ('embed', 'mlp')}, params, **options)
  state, bad = optimizer.init(params), {'w': jnp.full((2, 3), jnp.nan)}
  after = jax.jit(optimizer.update)(bad, state, params, jnp.float32(0.1), jnp.bool_(False))
  jax.tree.map(np.testing.assert_array_equal, after, (params, state))


def test_adamw_keeps_no_copy_of_its_moments():
  """Nor does it compute them twice: everything that reads them reads what is kept."""
  shape = {'w': jax.ShapeDtypeStruct((512, 1024), jnp.float32)}        # 2 MiB
  optimizer = optimizers.adamw({'w': ('embed', 'mlp')}, shape, weight_decay=0.1)

  def update(params, state, grads, rate, moves):                       # donated in the order of results
    return optimizer.update(grads, state, params, rate, moves)
  scalars = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), bool)
  lowered = jax.jit(update, donate_argnums=(0, 1)).lower(shape, jax.eval_shape(optimizer.init, shape), shape,
                                                         *scalars)
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**20
