"""Executors of several devices against `einsum` on one: values, gradients, and what moves between devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax import nnx
from pallas_kernels import walk
from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.aot import hlo
from stmoe.aot import program as aot
from stmoe.core import assignment
from stmoe.core.execute import all_to_all_dropless
from stmoe.core.transport import exchange
from stmoe.experts import mlp
from tests.experts import conv
from tests.experts import generic

G, S, D, F, E = 8, 16, 16, 24, 8
MESHES = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
EXECUTORS = ['all_to_all', 'all_to_all:chunks=3', 'all_to_all_dropless', 'hops', 'hops_dropless']
BANKS = [*lookup.available('experts'), 'conv']


def bank(name):
  """The bank called `name`, of a file or of the tests."""
  return generic.of(conv.Conv if name == 'conv' else lookup.constructor('experts', name), D, E, d_ff=F)


bank_of = functools.cache(bank)


def shares(name):
  """Whether the experts of a bank share arrays."""
  return not all(jax.tree.leaves(axes.per_expert(nnx.eval_shape(lambda: bank(name)))))


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks so small that every expert needs several of both sizes, three of them a turn."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in dict(sizes=lambda *_: (2, 6), FEW=0, TOGETHER=3).items():
      patch.setattr(walk, name, value)
    yield


def made(k, capacity, skew=0.0):
  """An Assignment of `k` choices per token, some of them padding; with `skew` the last experts get most."""
  rng = np.random.default_rng(k)
  logits = rng.normal(size=(G, S, E)) + skew * np.arange(E)
  edges = assignment.from_top_k(jax.nn.softmax(jnp.asarray(logits, jnp.float32)), k)
  mask = np.arange(S) < rng.integers(S // 2, S + 1, (G, 1))
  return assignment.cap(assignment.kill_padding(edges, jnp.asarray(mask)), capacity)


def by_experts(capacity):
  """An Assignment in which experts chose tokens, so that `choices` is None."""
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(3), (G, S, E)))
  return assignment.cap(assignment.from_experts_choice(probs, capacity), capacity)


def program(executor):
  """The function (x, weight, bank, a) -> (y, gradients to x, weight and bank)."""
  def run(x, weight, bank, a):
    execute = lookup.executor(executor)
    y, pull = jax.vjp(lambda x, weight, bank: execute(x, a.replace(weight=weight), bank), x, weight, bank)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return y, pull(cotangent)
  return run


def placed(x, a, bank):
  """The arguments on the devices of the current mesh."""
  mesh = jax.sharding.get_mesh()
  put = lambda tree, *names: jax.tree.map(lambda v: jax.device_put(v, jax.NamedSharding(
      mesh, axes.spec(names[:v.ndim] + (None,) * (v.ndim - len(names))))), tree)
  named = {tuple(path): v.get_metadata()['out_sharding'] for path, v in nnx.to_flat_state(nnx.state(bank))}
  graph, state = nnx.split(bank)
  flat = [(path, v.replace(put(v[...], *named[tuple(path)]))) for path, v in nnx.to_flat_state(state)]
  return put(x, 'group'), put(a, 'group'), nnx.merge(graph, nnx.from_flat_state(flat))


@functools.cache
def reference(kind, bank):
  """(x, a, what `einsum` makes of them on one device)."""
  x = jax.random.normal(jax.random.key(7), (G, S, D))
  a = dict(top_1=lambda: made(1, 3), top_2=lambda: made(2, 5, skew=0.3),
           one_device=lambda: made(1, S, skew=9.0), experts=lambda: by_experts(4))[kind]()
  return x, a, jax.device_get(jax.jit(program('einsum'))(x, a.weight, bank_of(bank), a))


def assert_same(got, want, tolerance=1e-5):
  for g, w in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1e-3, np.abs(w).max()))


def run(executor, kind, bank, shape, rules=''):
  x, a, want = reference(kind, bank)
  with axes.use(axes.make_mesh(*shape), axes.rules(rules)):
    x, a, made = placed(x, a, bank_of(bank))
    return jax.jit(program(executor))(x, a.weight, made, a), want


@pytest.mark.parametrize('shape', [shape if shape == (2, 2, 2) else
                                   pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES])
@pytest.mark.parametrize('executor', EXECUTORS)
def test_every_mesh(executor, shape):
  assert_same(*run(executor, 'top_2', 'mlp', shape))


@pytest.mark.parametrize('bank', [bank if shares(bank) else pytest.param(bank, marks=pytest.mark.slow)
                                  for bank in BANKS])
@pytest.mark.parametrize('executor', [EXECUTORS[0], *(pytest.param(executor, marks=pytest.mark.slow)
                                                      for executor in ('gather', EXECUTORS[2]))])
def test_every_bank(executor, bank):
  assert_same(*run(executor, 'top_2', bank, (2, 2, 2)))


def test_some_banks_share_arrays():
  assert {'lora', 'mpo', 'conv'} <= {bank for bank in BANKS if shares(bank)}


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 1, 8)])
def test_kernels_where_nothing_splits_the_experts(shape):
  assert_same(*run('pallas', 'top_2', 'mlp', shape))


def test_kernels_do_not_exchange_rows():
  with pytest.raises(errors.UserError, match='experts over expert; nearest: .*all_to_all_dropless'):
    run('pallas', 'top_2', 'mlp', (2, 4, 1))


@pytest.mark.parametrize('kind, bank', [('top_1', 'glu'), ('one_device', 'mlp'), ('experts', 'mlp')])
@pytest.mark.parametrize('executor', EXECUTORS[:3:2])
def test_every_kind_of_assignment(executor, kind, bank):
  assert_same(*run(executor, kind, bank, (2, 4, 1)))


@pytest.mark.parametrize('rules', ['fsdp,folded', *(pytest.param(rules, marks=pytest.mark.slow)
                                                    for rules in ('folded', 'fsdp'))])
@pytest.mark.parametrize('executor', EXECUTORS[:3:2])
def test_other_foldings_of_the_devices(executor, rules):
  assert_same(*run(executor, 'top_2', 'mlp', (2, 2, 2), rules))


KINDS = r'= (?:\(.*?\)|\S+) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\('


def moved(executor, shape, rules='', gradients=True):
  """dict kind of collective -> how many the compiled program has, all-to-alls of counts left out."""
  x, a, _ = reference('top_2', 'mlp')
  run = program(executor)
  with axes.use(axes.make_mesh(*shape), axes.rules(rules)):
    x, a, bank = placed(x, a, bank_of('mlp'))
    forward = lambda *given: run(*given)[0]
    text = jax.jit(run if gradients else forward).lower(x, a.weight, bank, a).compile().as_text()
  found = [m[1] for m in re.finditer(KINDS, text) if not m[0].startswith('= (s32')]
  return {kind: found.count(kind) for kind in sorted({*found})}


@pytest.mark.parametrize('shape', [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 4, 1)])
@pytest.mark.parametrize('executor', EXECUTORS[:3:2])
def test_two_all_to_alls_there_and_two_back_and_nothing_else(executor, shape):
  assert moved(executor, shape, gradients=False) == {'all-to-all': 2}
  # One reduction of the experts' gradients over the devices that hold the same ones.
  assert moved(executor, shape) == {'all-to-all': 4, 'all-reduce': 1}


NODES = 'expert=data+expert'           # the first axis counts the nodes, the second the devices of each


@pytest.mark.parametrize('executor', ['hops', pytest.param('hops:chunks=2', marks=pytest.mark.slow),
                                      'hops_dropless'])
@pytest.mark.parametrize('shape, kind', [((2, 4, 1), 'experts'), ((2, 2, 2), 'top_2'), *(
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (((4, 2, 1), 'top_1'), ((2, 4, 1), 'one_device')))])
def test_hops_over_nodes(executor, shape, kind):
  assert_same(*run(executor, kind, 'mlp', shape, NODES))


def test_hops_send_to_as_many_devices_as_there_are_nodes_and_then_devices_of_a_node():
  x, a, _ = reference('top_2', 'mlp')
  found = {}
  for executor in ('hops', 'all_to_all'):
    with axes.use(axes.make_mesh(2, 4, 1), axes.rules(NODES)):
      x, a, bank = placed(x, a, bank_of('mlp'))
      text = jax.jit(lookup.executor(executor)).lower(x, a, bank).compile().as_text()
    found[executor] = aot.collectives(hlo.parse(text), 8)
  buffers = 4 * E * a.capacity * D                                   # bytes of a device's own group
  assert sorted((c.kind, c.devices, c.bytes) for c in found['hops']) == (
      [('all-to-all', 2, buffers)] * 2 + [('all-to-all', 4, buffers)] * 2)
  assert [(c.kind, c.devices, c.bytes) for c in found['all_to_all']] == [('all-to-all', 8, buffers)] * 2
  # There and back: half of the buffers change their node, three quarters their place in it; or 7/8 at once.
  assert sum(c.wire for c in found['hops']) == 2 * (1 / 2 + 3 / 4) * buffers
  assert sum(c.wire for c in found['all_to_all']) == 2 * 7 / 8 * buffers


def test_dropless_hops_send_no_row_past_its_node():
  """Rows themselves: one all-to-all there and back of two nodes, then of four devices; and nothing else."""
  x, a, _ = reference('top_2', 'mlp')
  with axes.use(axes.make_mesh(2, 4, 1), axes.rules(NODES)):
    x, a, bank = placed(x, a, bank_of('mlp'))
    text = jax.jit(lookup.executor('hops_dropless')).lower(x, a, bank).compile().as_text()
  rows = [c.devices for c in aot.collectives(hlo.parse(text), 8) if c.bytes > 1024]      # counts are small
  assert sorted(rows) == [2, 2, 4, 4]
  assert moved('hops_dropless', (2, 4, 1), NODES, gradients=False) == {'all-to-all': 4}


def test_each_part_travels_by_itself():
  assert moved('all_to_all:chunks=3', (1, 8, 1), gradients=False) == {'all-to-all': 6}


def test_experts_cut_over_model_add_one_sum_each_way():
  assert moved('all_to_all', (2, 2, 2), gradients=False) == {'all-to-all': 2, 'all-reduce': 1}
  both = moved('all_to_all', (2, 2, 2))                              # XLA joins sums that it can do together
  assert both.pop('all-reduce') <= 3 and both == {'all-to-all': 4}
  assert moved('all_to_all', (2, 2, 2), 'folded') == {'all-to-all': 4, 'all-reduce': 1}


def test_experts_split_over_devices_with_the_same_tokens_are_refused():
  x, a, _ = reference('top_2', 'mlp')
  with axes.use(axes.make_mesh(2, 2, 2), axes.rules('expert=model')):
    with pytest.raises(errors.UserError, match=r'must have different tokens; nearest: group=data\+'):
      jax.eval_shape(lambda: exchange.on_shards(lambda *_: None, x, a, bank_of('mlp'), None))


def test_dropout_differs_between_devices_and_not_between_calls():
  bank = mlp.Mlp(D, num_experts=E, d_ff=F, dropout_rate=0.5, rngs=nnx.Rngs(0))
  x, a = jnp.ones((G, S, D)), assignment.cap(assignment.from_choices(      # all to expert 0
      jnp.zeros((G, S, 1), jnp.int32), jnp.ones((G, S, 1)), E), S)
  with axes.use(axes.make_mesh(8, 1, 1)):
    execute = jax.jit(lambda key: lookup.executor('all_to_all')(x, a, bank, key))
    first, again = execute(jax.random.key(0)), execute(jax.random.key(0))
  np.testing.assert_array_equal(first, again)
  assert all(float(jnp.abs(first[0, 0] - first[g, 0]).max()) > 1e-3 for g in range(1, G))


def test_dropout_differs_between_the_parts_that_travel_one_by_one():
  bank = mlp.Mlp(D, num_experts=E, d_ff=F, dropout_rate=0.5, rngs=nnx.Rngs(0))
  x, a = jnp.ones((G, S, D)), assignment.cap(assignment.from_choices(      # all to expert 0
      jnp.zeros((G, S, 1), jnp.int32), jnp.ones((G, S, 1)), E), S)
  with axes.use(axes.make_mesh(1, 8, 1)):
    y = jax.jit(lambda key: lookup.executor('all_to_all:chunks=2')(x, a, bank, key))(jax.random.key(0))
  first, second = y[:, :S // 2], y[:, S // 2:]                       # the tokens of either part
  assert (jnp.abs(first - second).max(axis=-1) > 1e-3).mean() > 0.9


def test_rows_that_arrive_are_an_assignment():
  a = all_to_all_dropless.received(jnp.array([[2, 0, 1], [0, 0, 0]]), 4)
  assert a.expert.tolist() == [[0, 0, 2, 3], [3, 3, 3, 3]]
  assert a.slot.tolist() == [[0, 1, 0, 4], [4, 4, 4, 4]]
