"""Logical axes under rules: what splits where, and one line for every mistake."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from stmoe import axes
from stmoe import errors

EXPERT = ('expert', 'expert_embed', 'expert_mlp')


def test_default_rules():
  assert axes.spec(('batch', 'length')) == P(('data', 'expert'), None)
  assert axes.spec(EXPERT) == P('expert', None, 'model')
  assert axes.mesh_axes('group') == ('data', 'expert') and axes.mesh_axes('mlp') == ('model',)


def test_rules_hold_inside_use_only():
  mesh = axes.make_mesh(data=2, expert=2, model=2)
  with axes.use(mesh, axes.rules('fsdp')):
    assert axes.spec(EXPERT) == P('expert', 'data', 'model')
    assert axes.spec(('embed', 'mlp')) == P(('data', 'expert'), 'model')
    assert axes.num_shards('embed') == 4 and jax.sharding.get_mesh() == mesh
    with axes.use(mesh, axes.rules('folded')):
      assert axes.spec(EXPERT) == P(('expert', 'model'), None, None) and axes.num_shards('group') == 8
    assert axes.num_shards('group') == 4
  assert axes.spec(EXPERT) == P('expert', None, 'model') and axes.num_shards('group') == 1


def test_rules_are_left_after_an_error():
  with pytest.raises(KeyError), axes.use(axes.make_mesh(data=8), axes.rules('fsdp')):
    raise KeyError
  assert axes.mesh_axes('embed') == () and jax.sharding.get_abstract_mesh().empty


@pytest.mark.parametrize('text, message', [
    ('fsdq', "no table 'fsdq'; nearest: fsdp"), ('fsdp,foldet', "no table 'foldet'; nearest: folded"),
    ('embd=data', "no logical axis 'embd'; nearest: embed"),
    ('embed=dta', "no mesh axis 'dta'; nearest: data")])
def test_unknown_rules(text, message):
  with pytest.raises(errors.UserError, match=message):
    axes.rules(text)


def test_one_mesh_axis_cannot_split_an_array_twice():
  with axes.use(axes.make_mesh(data=8), axes.rules('embed=model')):
    with pytest.raises(errors.UserError, match="mesh axis 'model' on one array twice.*'embed', 'mlp'"):
      axes.spec(('embed', 'mlp'))


@pytest.mark.parametrize('text, names, near', [
    ('embed=model', ('embed', 'mlp'), 'embed=model,mlp='),
    ('folded,mlp=data+model', ('mlp', 'vocab'), 'group=data+expert+model,mlp=data+model,vocab=,'),
    ('expert_embed=expert+data', ('expert', 'embed'), 'expert_embed=data')])
def test_the_nearest_rules_are_rules_under_which_the_array_is_split_once(text, names, near):
  mesh = axes.make_mesh(data=8)
  with axes.use(mesh, axes.rules(text)), pytest.raises(errors.UserError, match='on layer/w twice') as error:
    axes.over(names, 'layer/w')
  suggested = str(error.value).partition("nearest: mesh.rules='")[2].rstrip("'")
  assert suggested.startswith(near)
  with axes.use(mesh, axes.rules(suggested)):
    axes.over(names, 'layer/w')


def test_arrays_of_experts_are_split_as_banks_are():
  names = ('expert', 'embed', 'mlp'), ('expert', 'joined_kv', 'embed')
  with axes.use(axes.make_mesh(data=2, expert=2, model=2), axes.rules('fsdp')):
    assert [axes.spec(own) for own in names] == [P('expert', 'data', 'model'), P('expert', 'model', 'data')]
    assert axes.over(names[0], 'w') == [('expert',), ('data',), ('model',)]
  with axes.use(axes.make_mesh(data=2, expert=2, model=2), axes.rules('folded')):
    assert [axes.spec(own) for own in names] == [P(('expert', 'model'), None, None)] * 2
    assert axes.spec(('embed', 'mlp')) == P(None, 'model')


def test_unknown_names_and_wrong_numbers_of_devices():
  with pytest.raises(ValueError, match="unknown logical axis 'embd'; nearest: 'embed'"):
    axes.spec(('embd',))
  with pytest.raises(ValueError, match='3x1x1 = 3 devices, but there are 8'):
    axes.make_mesh(data=3)
  assert axes.make_mesh(data=8).axis_types == (jax.sharding.AxisType.Auto,) * 3


def test_shapes_alone_need_no_initialiser():
  class One(nnx.Module):

    def __init__(self, init):
      self.w = axes.param(init, (2, 3), 'embed', 'mlp', rngs=nnx.Rngs(0), dtype=jnp.bfloat16)

  def never(key, shape, dtype):
    raise AssertionError('an initialiser ran')
  one = axes.abstract(lambda: One(never))
  assert (one.w.shape, one.w.dtype) == ((2, 3), jnp.bfloat16)
  with pytest.raises(AssertionError, match='an initialiser ran'):
    One(never)
