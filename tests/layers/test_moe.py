"""The sparse layer: grouping, and the identities that hold whatever the router is."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import moe
from tests.experts import conv

B, T, D, F, E = 2, 8, 6, 10, 4
EXPERTS = dict(name='mlp', d_ff=F, init_scale=1.0)
TOP_2 = dict(name='st_moe', num_experts=E, k=2, second_policy='all')
DROPLESS = dict(capacity_factor=(None, None))


def layer(router, executor='gather', group_size=None, **experts):
  return moe.Moe(D, router=lookup.recipe('router', router), executor=executor, group_size=group_size,
                 experts=lookup.recipe('experts', EXPERTS | experts), rngs=nnx.Rngs(0))


def context(mask=None, **fields):
  mask = jnp.ones((B, T), bool) if mask is None else mask
  whole = jnp.broadcast_to(jnp.arange(T), (B, T))
  return contract.Context(mask=mask, ids=whole, positions=whole, segments=mask.astype(jnp.int32),
                          step=jnp.int32(0), tokens=jnp.float32(mask.sum()), **fields)


def activations(seed=0):
  return jax.random.normal(jax.random.key(seed), (B, T, D))


@jax.jit
def apply(module, x, ctx):
  return module(x, ctx, {})[:2]


def test_group_size_must_divide_and_names_the_nearest():
  with pytest.raises(UserError, match=r'group_size 6 does not divide the 2 x 8 = 16 tokens.*: 2, 4, 8'):
    moe.num_groups(2, 8, 6)
  assert moe.num_groups(2, 8, None) == (2, 8)
  assert moe.num_groups(2, 8, 16) == (1, 16)
  assert moe.num_groups(2, 8, 4) == (4, 4)


def test_groups_must_be_shared_evenly_by_the_devices():
  mesh = axes.make_mesh(data=4, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    assert moe.num_groups(4, 8, None) == (4, 8)
    with pytest.raises(UserError, match='multiple of 4 groups; nearest: 2, 4, 8'):
      moe.num_groups(4, 8, 16)


def mesh_of(*names, kind=jax.sharding.AxisType.Auto):
  return jax.make_mesh((2,) * len(names), names, axis_types=(kind,) * len(names),
                       devices=jax.devices()[:2 ** len(names)])


@pytest.mark.parametrize('names', [('batch',), ('data', 'model'), ('replica', 'expert')])
@pytest.mark.parametrize('executor', ['gather', 'all_to_all', 'ragged'])
def test_a_mesh_of_somebody_else_changes_nothing(names, executor):
  """It may lack axes of ours, and have others, which the compiler splits as it likes."""
  module, x = layer(TOP_2, executor), activations()
  alone, aux = apply(module, x, context())
  mesh = mesh_of(*names)
  with jax.set_mesh(mesh):
    y, there = apply(module, jax.device_put(x, jax.NamedSharding(mesh, jax.P(names[0]))), context())
  np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(there.load, aux.load)


@pytest.mark.parametrize('name', ['batch', 'data'])
def test_inside_a_shard_map_a_layer_is_that_of_one_device(name):
  module, x, ctx = layer(TOP_2), activations(), context()
  inside = jax.shard_map(lambda module, x, ctx: module(x, ctx, {})[0], mesh=mesh_of(name),
                         in_specs=(jax.P(), jax.P(name), ctx.each(lambda a: jax.P(name)).replace(
                             step=jax.P(), tokens=jax.P())), out_specs=jax.P(name), check_vma=False)
  np.testing.assert_allclose(jax.jit(inside)(module, x, ctx), apply(module, x, ctx)[0], rtol=1e-5, atol=1e-6)


def test_explicit_axes_are_a_line():
  with jax.set_mesh(mesh_of('data', kind=jax.sharding.AxisType.Explicit)):
    with pytest.raises(UserError, match='are Explicit: data; wanted: Auto'):
      apply(layer(TOP_2), activations(), context())


def test_unknown_executor_is_one_line():
  with pytest.raises(UserError, match="'gathr'; nearest: gather"):
    layer(TOP_2, executor='gathr')


@pytest.mark.parametrize('executor', ['gather', 'blocks'])
def test_identical_experts_are_the_dense_layer(executor):
  module, x = layer(TOP_2 | DROPLESS, executor), activations()
  for name in ('wi', 'wo'):
    w = getattr(module.experts, name)
    w[...] = jnp.broadcast_to(w[:1], w.shape)
  y, _ = apply(module, x, context())
  dense = jax.nn.relu(x @ module.experts.wi[0]) @ module.experts.wo[0]
  np.testing.assert_allclose(y, dense, rtol=1e-4, atol=1e-5)         # gates are normalised to 1


@pytest.mark.parametrize('executor', ['gather', 'blocks'])
def test_all_experts_with_softmax_gates_are_the_full_mixture(executor):
  module, x = layer(TOP_2 | DROPLESS | dict(k=E), executor), activations()
  y, _ = apply(module, x, context())
  probs = jax.nn.softmax(x @ module.router.w[...])
  every = jnp.einsum('btef,efd->bted', jax.nn.relu(jnp.einsum('btd,edf->btef', x, module.experts.wi[...])),
                     module.experts.wo[...])
  np.testing.assert_allclose(y, jnp.einsum('bte,bted->btd', probs, every), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('executor', ['gather', 'blocks'])
def test_permuting_tokens_permutes_outputs_when_nothing_drops(executor):
  module, x = layer(TOP_2 | DROPLESS, executor), activations()
  order = np.random.default_rng(0).permutation(T)
  y, _ = apply(module, x, context())
  permuted, _ = apply(module, x[:, order], context())
  np.testing.assert_allclose(permuted, y[:, order], rtol=1e-5, atol=1e-6)


def test_padding_takes_no_slot_and_gets_zeros():
  module, x = layer(TOP_2 | dict(capacity_factor=(1.0, 1.0), min_capacity=1)), activations()
  mask = jnp.arange(T) >= jnp.array([[4], [0]])                      # padding first, where it could do harm
  y, aux = apply(module, x, context(mask))
  assert not np.asarray(y[0, :4]).any()
  assert float(aux.load.sum()) == 2 * (4 + T)
  other, _ = apply(module, x.at[0, :4].set(100.0), context(mask))
  np.testing.assert_array_equal(y[mask], other[mask])
  # The same tokens without padding before them find the same places: capacity depends on T alone.
  shifted, _ = apply(module, jnp.roll(x, -4, axis=1), context(jnp.roll(mask, -4, axis=1)))
  np.testing.assert_allclose(shifted[0, :4], y[0, 4:], rtol=1e-5, atol=1e-6)


def test_group_size_changes_who_competes():
  fields = TOP_2 | dict(capacity_factor=(1.0, 1.0), min_capacity=1)
  x = activations()
  one = apply(layer(fields, group_size=B * T), x, context())[0]
  two = apply(layer(fields, group_size=T // 2), x, context())[0]
  assert float(jnp.abs(one - two).max()) > 1e-3
  alone = apply(layer(fields, group_size=T), x.at[1].set(0), context())[0]
  np.testing.assert_allclose(apply(layer(fields, group_size=T), x, context())[0][0], alone[0], rtol=1e-5)


@pytest.mark.parametrize('router', [dict(name='switch', num_experts=E), TOP_2])
def test_gradients_reach_router_and_experts(router):
  module, x = layer(router | DROPLESS), activations()
  grads = jax.jit(jax.grad(lambda module: (module(x, context(), {})[0] ** 2).sum()))(module)
  for array in jax.tree.leaves(grads):
    assert float(jnp.abs(array).max()) > 1e-4


def test_expert_dropout_only_in_training():
  module, x = layer(TOP_2 | DROPLESS, dropout_rate=0.5), activations()
  key = jax.random.key(0)
  calm = apply(module, x, context(key=key))[0]
  np.testing.assert_array_equal(calm, apply(module, x, context())[0])
  assert float(jnp.abs(calm - apply(module, x, context(key=key, train=True))[0]).max()) > 1e-3


def test_executors_agree_under_scan_and_rematerialisation():
  x, ctx, total = activations(), context(), {}
  for executor in ('gather', 'blocks'):
    module = layer(TOP_2, executor)

    def loss(module, x):
      body = jax.checkpoint(lambda x, _: (x + module(x, ctx, {})[0], None))
      return (jax.lax.scan(body, x, length=2)[0] ** 2).sum()
    total[executor] = jax.jit(jax.value_and_grad(loss))(module, x)
  for got, want in zip(jax.tree.leaves(total['blocks']), jax.tree.leaves(total['gather'])):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_capacity_of_a_dropless_layer_is_the_group():
  routed = layer(TOP_2 | DROPLESS).router(activations(), context(), {})
  assert routed.assignment.capacity == T
  assert bool(assignment.live(routed.assignment).all())


@pytest.mark.slow
@pytest.mark.parametrize('bank', ['lora', 'conv'])
def test_shared_arrays_in_stacked_layers_and_alone(bank):
  """Layers in a scan, computed again in the backward: `blocks` as `gather`; and tokens that are alone."""
  experts = conv.Conv if bank == 'conv' else lookup.recipe('experts', EXPERTS | dict(name=bank))
  x, found = activations(), {}

  @nnx.split_rngs(splits=2)
  @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: 'layers'})
  def stacked(rngs):
    router = lookup.recipe('router', TOP_2 | DROPLESS)
    return moe.Moe(D, router=router, experts=experts, executor='gather', rngs=rngs)
  change = lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size)).reshape(w.shape)
  layers = jax.tree.map(change, stacked(nnx.Rngs(0)))

  @functools.partial(jax.jit, static_argnames=('executor', 'alone'))
  def run(layers, x, executor, alone=False):
    def body(x, layer):
      layer.executor = executor
      return x + layer(x, context(alone=alone), {})[0], None
    loss = lambda layers, x: (jax.lax.scan(jax.checkpoint(body), x, layers)[0] ** 2).sum()
    return jax.value_and_grad(loss, argnums=(0, 1))(layers, x)
  found = {executor: run(layers, x, executor) for executor in ('gather', 'blocks')}
  found['alone'] = run(layers, x, 'gather', alone=True)
  for name in ('blocks', 'alone'):
    for got, want in zip(jax.tree.leaves(found[name]), jax.tree.leaves(found['gather']), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * max(1.0, float(jnp.abs(want).max())))


def test_a_whole_batch_is_one_group():
  """Of 16 tokens every expert takes 3, whatever the sequence; alone, tokens have a place each."""
  module = layer(dict(name='gshard', num_experts=E, second_policy='all', token_share=(None, 3 / 16)))
  assert moe.grouping(module, context(), B, T)[:2] == (B, T)
  module.whole_batch = True
  assert moe.grouping(module, context(), B, T)[:2] == (1, B * T)
  assert moe.grouping(module, context(alone=True), B, T)[:2] == (B * T, 1)
  _, aux = apply(module, activations(), context())
  kept = 2 * B * T * (1 - aux.metrics['drop_frac'])
  assert kept == np.minimum(aux.load, 3).sum() < aux.load.sum()
  with pytest.raises(UserError, match='group_size=4 and whole_batch=True.*nearest: group_size=None'):
    moe.Moe(D, router=lookup.recipe('router', TOP_2), experts=lookup.recipe('experts', EXPERTS), group_size=4,
            whole_batch=True, rngs=nnx.Rngs(0))


def test_devices_route_their_own_part_of_a_whole_batch():
  module = layer(TOP_2)
  module.whole_batch = True
  with jax.set_mesh(axes.make_mesh(data=4, devices=jax.devices()[:4])):
    assert moe.grouping(module, context(), 8, T)[:2] == (4, 2 * T)


def test_outputs_are_masked_in_training_and_scaled_in_evaluation():
  module, x = layer(TOP_2 | DROPLESS), activations()
  plain, _ = apply(module, x, context())
  module.output_masking = 0.25
  np.testing.assert_allclose(apply(module, x, context())[0], 0.75 * plain, rtol=1e-6)
  y, _ = apply(module, x, context(train=True, key=jax.random.key(5)))
  masked = (np.asarray(y) == 0).all(-1)                              # whole tokens
  assert 0 < masked.sum() < B * T and ((np.asarray(y) != 0).all(-1) == ~masked).all()
  np.testing.assert_allclose(y[~masked], plain[~masked], rtol=1e-4)  # and not grown
