"""Mistakes in a router's file are one line that names it, and a broken file breaks nothing but itself."""

import sys

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

import stmoe.routers
from stmoe import errors
from stmoe import lookup
from stmoe.core import checked
from stmoe.core import contract

GOOD = '''"""A router."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics


class Probe(nnx.Module):
  """Top-1. Losses: own."""

  def __init__(self, d_model, *, num_experts, rngs):
    self.w = axes.param(nnx.initializers.normal(1.0), (d_model, num_experts), 'embed', 'unmodeled', rngs=rngs)
    self.num_experts = num_experts

  def __call__(self, x, ctx, carry):
    """Returns Routed for x [G,S,D]."""
    probs = jax.nn.softmax(x @ self.w[...])
    edges = assignment.from_top_k(probs, 1)
    edges = assignment.kill_padding(edges, ctx.mask)
    a = assignment.cap(edges, x.shape[1])
    aux = contract.Aux(losses=dict(own=probs.mean()), load=metrics.load(edges), metrics={})
    return contract.Routed(a, aux, carry)
'''

# What is replaced, by what, and what the line says.
MISTAKES = {
    'a tuple': ('return contract.Routed(a, aux, carry)', 'return a, aux, carry',
                'returned a tuple; wanted: contract.Routed(assignment, aux, carry)'),
    'load of another shape': ('load=metrics.load(edges)', 'load=metrics.load(edges)[:2]',
                              'aux.load is float32[2]; wanted: float32[4]'),
    'a loss of shape [1]': ('own=probs.mean()', 'own=probs.mean()[None]',
                            "aux.losses['own'] is float32[1]; wanted: float32[]"),
    'edges not capped': ('assignment.cap(edges, x.shape[1])', 'edges',
                         'assignment is a Edges; wanted: assignment.cap(edges, capacity)'),
    'dtype of the expert ids': (
        'return contract', 'a = a.replace(expert=a.expert.astype(jnp.float32))\n    return contract',
        'assignment.expert is float32[2,6]; wanted: int32[2,6]'),
    'a missing field': (', load=metrics.load(edges)', '', "line HERE: Aux.__init__() missing 1 required"),
    'a class of another name': ('class Probe', 'class Prober',
                                'no class called like its file; wanted: Probe (there are: Prober)'),
    'an unknown axis': ("'embed', 'unmodeled'", "'embd', 'unmodeled'",
                        "line HERE: unknown logical axis 'embd'; nearest: 'embed'"),
    'no num_experts': ('    self.num_experts = num_experts\n', '', 'Probe has num_experts=None; wanted'),
    'a misspelt attribute': ('self.w[...]', 'self.v[...]',
                             "line HERE: 'Probe' object has no attribute 'v'"),
    'no assignment at all': ('contract.Routed(a,', 'contract.Routed(None,',
                             'Routed.assignment is a NoneType'),
    'a carry that is lost': ('aux, carry)', "aux, dict(mine=x))",
                             'its method init_carry(x [B,T,D]) returns what is there before the first layer'),
    'a statistic without reduction': ('metrics={})', 'metrics={}, statistics=dict(mean=probs))',
                                      "aux.statistics['mean'] is float32[2,6,4]; wanted: contract.total"),
    'no Python': ('class Probe(nnx.Module):', 'class Probe(nnx.Module)', "line 13: expected ':'"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Returns folder(source) -> path of the file `probe.py` beside the project's routers."""
  monkeypatch.setattr(stmoe.routers, '__path__', [*stmoe.routers.__path__, str(tmp_path)])
  monkeypatch.delitem(sys.modules, 'stmoe.routers.probe', raising=False)

  def write(source, name='probe'):
    (tmp_path / f'{name}.py').write_text(source, encoding='utf-8')
    return str(tmp_path / f'{name}.py')
  yield write
  sys.modules.pop('stmoe.routers.probe', None)


def shapes():
  """A layer with the router `probe` is made and called, without numbers."""
  def run(x):
    fields = dict(router=dict(name='probe', num_experts=4), experts=dict(name='mlp', d_ff=4))
    layer = lookup.recipe('layer', dict(name='moe', executor='einsum', **fields))(8, rngs=nnx.Rngs(0))
    ctx = contract.Context(**contract.numbered(jnp.ones((2, 6), bool)), step=jnp.int32(0),
                           tokens=jnp.float32(12))
    return layer(x, ctx, {})
  return jax.eval_shape(run, jnp.ones((2, 6, 8)))


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_a_line_that_names_the_file(folder, mistake):
  old, new, says = MISTAKES[mistake]
  assert GOOD.count(old) == 1
  says = says.replace('HERE', str(GOOD[:GOOD.index(old)].count('\n') + 1))
  path = folder(GOOD.replace(old, new))
  with pytest.raises(errors.UserError) as error:
    shapes()
  assert str(error.value).startswith(path) and says in str(error.value), str(error.value)
  assert '\n' not in str(error.value)


def test_a_good_file_is_a_router_at_once_and_a_broken_one_beside_it_is_no_hindrance(folder):
  folder(GOOD)
  folder('this is no Python', name='broken')
  assert {'probe', 'broken', 'switch'} <= set(lookup.available('router'))
  assert shapes()[0].shape == (2, 6, 8)
  lookup.constructor('router', 'switch')


def test_weights_that_are_no_numbers_are_seen_with_numbers(folder):
  path = folder(GOOD.replace('cap(edges, x.shape[1])', 'cap(edges.replace(weight=edges.weight / 0 * 0), 6)'))
  shapes()
  make = lookup.recipe('router', dict(name='probe', num_experts=4))
  router = make(8, rngs=nnx.Rngs(0))
  mask = jnp.ones((2, 6), bool).at[0, 4:].set(False)
  ctx = contract.Context(**contract.numbered(mask), step=jnp.int32(0), tokens=jnp.float32(10))
  a = checked.route(router, jnp.ones((2, 6, 8)), ctx, {}).assignment
  assert checked.faults(router, a, mask) == [f'{path}: 10 live edges have a weight that is no finite number']
  right = a.replace(weight=jnp.ones_like(a.weight))
  assert not checked.faults(router, right, mask)
  assert 'padding has live edges' in checked.faults(router, right, mask.at[1, 0].set(False))[0]
  assert 'taken twice' in checked.faults(router, right.replace(slot=0 * a.slot), mask)[0]
  assert 'expert ids' in checked.faults(router, right.replace(expert=a.expert - 5), mask)[0]


def test_a_mistake_outside_of_the_router_stays_what_it_is():
  class Elsewhere(nnx.Module):
    num_experts = 4

    def __call__(self, x, ctx, carry):
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    checked.route(Elsewhere(), jnp.ones((1, 2, 8)), None, {})
