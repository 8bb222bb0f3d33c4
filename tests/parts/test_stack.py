"""The stack: patterns, names, state across steps, user errors."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import router_state as state
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import block
from stmoe.parts import stack
from stmoe.parts import visible

BLOCKS = dict(d=dict(layer='dense', d_ff=8), x=dict(layer='dense', d_ff=8, attention=False))


def build(pattern, blocks=BLOCKS, **fields):
  attend = functools.partial(attention.Attention, num_heads=2, head_dim=4)
  return stack.Stack(8, name='decoder', pattern=pattern, blocks=blocks, attention=attend, rngs=nnx.Rngs(0),
                     **fields)


class Counting(nnx.Module):
  """A layer with memory across layers (how many it has passed) and across steps (a bias)."""

  def __init__(self):
    self.bias = state.RouterState(jnp.zeros(2))

  def init_carry(self, x):
    return dict(passed=jnp.zeros(x.shape[:2]))

  def commit(self, aux):
    assert aux.load.shape == (2,)                                    # one layer's, never a stack's
    self.bias[...] += aux.load

  def __call__(self, x, ctx, carry):
    carry = dict(passed=carry['passed'] + 1)
    load = jnp.stack([carry['passed'].max(), jnp.float32(1)])
    return 0 * x, contract.Aux(losses={}, load=load, metrics={}), carry


def with_counting_layers(made):
  """Replaces the feed-forward layer of every sparse place 1 of the units by Counting."""
  for units, (_, repeats) in zip(made.segments, made.pattern):
    if made.scan_layers:
      units.blocks[1].layer = jax.vmap(lambda _: Counting())(jnp.arange(repeats))
    else:
      for unit in units:
        unit.blocks[1].layer = Counting()
  return made


class Drawing(nnx.Module):
  """A layer that reports the first numbers of the key it got."""

  def __call__(self, x, ctx, carry):
    drawn = jax.random.uniform(ctx.key, (2,))
    return 0 * x, contract.Aux(losses={}, load=drawn, metrics={}), carry


def test_every_layer_draws_its_own_noise_scanned_or_not():
  ones, drawn = jnp.ones((1, 3), jnp.int32), []
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0,
                         key=jax.random.key(0), train=True)
  for scan_layers in (True, False):
    made = build((('xx', 2), ('x', 1)), scan_layers=scan_layers)
    for units in made.segments:
      for unit in [units] if scan_layers else units:
        for one in unit.blocks:
          one.layer = Drawing()
    _, aux = made(jnp.ones((1, 3, 8)), ctx)
    drawn.append(np.stack([a.load for a in aux.values()]))           # [5, 2]
  assert len(np.unique(drawn[0], axis=0)) == 5
  np.testing.assert_array_equal(drawn[0], drawn[1])


def test_every_layer_begins_with_its_own_values_scanned_or_not():
  scanned, unrolled = (build((('xx', 2), ('x', 1)), scan_layers=scan) for scan in (True, False))
  units = [jax.tree.map(lambda a, i=i: a[i], units) for units, (_, repeats) in
           zip(scanned.segments, scanned.pattern) for i in range(repeats)]
  leaves = lambda unit: jax.tree.leaves(nnx.to_pure_dict(nnx.state(unit, nnx.Param)))
  for unit, other in zip(units, [unit for units in unrolled.segments for unit in units], strict=True):
    jax.tree.map(np.testing.assert_array_equal, leaves(unit), leaves(other))
  assert len(np.unique([leaves(unit)[0].ravel() for unit in units], axis=0)) == 3


class Ones(nnx.Module):
  """An attention that returns ones."""

  def __init__(self, d_model, *, rngs):
    pass

  def __call__(self, x, ctx, carry):
    return jnp.ones_like(x), None, carry


class Same(Ones):
  """A norm that does nothing."""

  def __call__(self, x):
    return x


class OnesLayer(nnx.Module):
  """A feed-forward layer that returns ones."""

  def __call__(self, x, ctx, carry):
    return jnp.ones_like(x), None, carry


def test_dropout_is_at_both_ends_and_after_every_sub_layer_each_with_its_own_mask():
  ones, width = jnp.ones((1, 3), jnp.int32), 4096
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0,
                         key=jax.random.key(0))
  made = stack.Stack(width, name='decoder', pattern=(('d', 1),), blocks=dict(d=dict(layer='dense', d_ff=1)),
                     attention=Ones, cross=Ones, norm=Same, dropout_rate=0.5, scan_layers=False,
                     rngs=nnx.Rngs(0))
  made.segments[0][0].blocks[0].layer = OnesLayer()
  x = jnp.ones((1, 3, width))
  assert (made(x, ctx)[0] == 4).all()                          # evaluation: 1 + 1 + 1 + 1
  y = np.asarray(made(x, ctx.replace(train=True))[0])
  assert (y == y[:, :1]).all()                                       # one mask per sequence
  # The output keeps half of the sums of four terms, each 0 or 2, and doubles them.
  share = [np.mean(y == value) for value in (0, 4, 8, 12, 16)]
  np.testing.assert_allclose(share, [17 / 32, 4 / 32, 6 / 32, 4 / 32, 1 / 32], atol=0.03)


@pytest.mark.parametrize('scan_layers', [True, False])
def test_names_carry_and_commit(scan_layers):
  made = with_counting_layers(build((('dd', 2), ('xd', 1)), scan_layers=scan_layers))
  ones = jnp.ones((1, 3), jnp.int32)
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0,
                         visible=dict(attention=visible.Visible(mask=visible.causal(ones))))
  _, aux = made(jnp.ones((1, 3, 8)), ctx)
  # The second block of each of the three units reports how many sparse layers the carry has passed.
  assert {name: float(a.load[0]) for name, a in aux.items()} == {
      'decoder_01': 1.0, 'decoder_03': 2.0, 'decoder_05': 3.0}
  made.commit(aux)
  made.commit(aux)
  layers = [layer for _, layer in made.layers() if isinstance(layer, Counting)]
  biases = np.concatenate([np.atleast_2d(layer.bias[...]) for layer in layers])
  first = [[2, 2], [4, 2], [6, 2]] if scan_layers else [[2, 2], [6, 2]]     # unrolled: first units only
  np.testing.assert_array_equal(biases, first)


def test_feed_forward_blocks_have_no_attention():
  made = build((('dx', 1),))
  assert made.segments[0].blocks[0].attention is not None
  assert made.segments[0].blocks[1].attention is None and made.segments[0].blocks[1].cross is None


def test_every_parameter_names_its_axes_and_scans_add_layers():
  names = axes.names_of(nnx.state(build((('dx', 2),)), nnx.Param))
  unit = names['segments'][0]['blocks'][0]
  assert unit['layer']['wi'] == ('layers', 'embed', 'mlp')
  assert unit['attention']['wq'] == ('layers', 'embed', 'joined_kv')
  assert names['norm']['scale'] == ('embed',)


class Routing(Ones):
  """An attention of two parts that have a state across steps."""

  def __init__(self, d_model, *, reports=('a', 'b'), rngs):
    self.a, self.b = Counting(), Counting()
    self.reports = reports

  def __call__(self, x, ctx, carry):
    aux = {}
    for name in 'ab':
      _, aux[name], carry = getattr(self, name)(x, ctx, carry)
    return 0 * x, aux, carry


@pytest.mark.parametrize('scan_layers', [True, False])
def test_parts_of_attention_report_remember_and_commit_each_by_itself(scan_layers):
  made = stack.Stack(8, name='decoder', pattern=(('d', 2),), blocks=BLOCKS, attention=Routing,
                     scan_layers=scan_layers, rngs=nnx.Rngs(0))
  ones = jnp.ones((1, 3), jnp.int32)
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0)
  _, aux = made(jnp.ones((1, 3, 8)), ctx)
  assert {name: float(a.load[0]) for name, a in aux.items()} == {
      'decoder_00.attention.a': 1, 'decoder_00.attention.b': 2, 'decoder_01.attention.a': 3,
      'decoder_01.attention.b': 4}
  made.commit(aux)
  state_of = {name: value['bias'].tolist() for name, value in made.states().items() if value}
  assert state_of == {name: [a.load[0], 1] for name, a in aux.items()}
  assert list(made.by_name()) == ['decoder_00', 'decoder_01']        # there is no router in them


def test_parts_that_are_not_announced_are_named():
  made = stack.Stack(8, name='decoder', pattern=(('d', 1),), blocks=BLOCKS, scan_layers=False,
                     attention=functools.partial(Routing, reports=()), rngs=nnx.Rngs(0))
  ones = jnp.ones((1, 3), jnp.int32)
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0)
  with pytest.raises(UserError, match='test_stack.py: it reported of the parts a, b; wanted: one Aux'):
    made(jnp.ones((1, 3, 8)), ctx)


@pytest.mark.parametrize('fields, message', [
    (dict(pattern=(('dz', 1),)), "letter 'z', but blocks has only: d, x"),
    (dict(pattern=('d', 2)), 'each entry is'),
    (dict(pattern=(('d', 2), 3)), 'each entry is'),
    (dict(pattern=(('d', 0),)), 'each entry is'),
    (dict(pattern=(('d', 1),), remat='dot'), "'dot'; nearest: dots"),
    (dict(pattern=(('d', 1),), blocks=dict(d=dict(layer='dense', d_ff=8, activatoin='relu'))),
     "no field 'activatoin'; nearest: activation"),
])
def test_mistakes_are_one_line(fields, message):
  with pytest.raises(UserError, match=message):
    build(**fields)


PLACED = dict(input=lambda x, f, norm: x + f(norm(x)), sum=lambda x, f, norm: norm(x + f(x)),
              output=lambda x, f, norm: x + norm(f(x)))


@pytest.mark.parametrize('place', block.NORM_PLACES)
def test_places_of_norms(place):
  """Attention and layer of one block, written out."""
  made = build((('d', 1),), norm_place=place, scan_layers=False)
  only = made.segments[0][0].blocks[0]
  ones = jnp.ones((1, 3), jnp.int32)
  ctx = contract.Context(mask=ones > 0, ids=ones, positions=ones, segments=ones, step=0, tokens=3.0,
                         visible=dict(attention=visible.Visible(mask=visible.causal(ones))))
  x = jax.random.normal(jax.random.key(0), (1, 3, 8))
  norms = [only.attention_norm, only.layer_norm]
  for scale, norm in enumerate(norms):
    norm.scale[...] = norm.scale[...] + 0.5 + scale
  wanted = x
  for name, norm in zip(('attention', 'layer'), norms):
    wanted = PLACED[place](wanted, lambda x, name=name: only.run(name, x, ctx, {})[0], norm)
  assert (made.norm is None) == (place == 'sum')
  wanted = wanted if made.norm is None else made.norm(wanted)
  np.testing.assert_allclose(made(x, ctx)[0], wanted, rtol=1e-5, atol=1e-5)
