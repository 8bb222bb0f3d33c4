"""Groups of parameters: who is in which, and how they train; what does not train has no slots."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import experts
from stmoe.checkpoints import checkpoint
from stmoe.train import check
from stmoe.train import groups
from stmoe.train import optimizers
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.train import test_step
from tests.train import tiny_run

# A model of four parameters, with what `modules.labels` says of them, and logical axes for Adafactor.
LABELS = {('stack', 0, 'router', 'w'): {'all', 'router'}, ('stack', 0, 'experts', 'wi'): {'all', 'expert'},
          ('stack', 0, 'experts', 'a'): {'all', 'expert', 'adapter'}, ('embed', 'table'): {'all'}}
NAMES = dict(stack={0: dict(router=dict(w=('embed', 'unmodeled')), experts=dict(
    wi=('expert', 'expert_embed', 'expert_mlp'), a=('expert', 'expert_embed', 'unmodeled')))},
    embed=dict(table=('vocab', 'embed')))
SIZES = {'embed': 8, 'unmodeled': 4, 'expert': 4, 'expert_embed': 8, 'expert_mlp': 6, 'vocab': 16}


def leaves(tree):
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def test_put_replaces_what_take_took():
  tree = dict(a=dict(x=1, y=2), b=3)
  assert groups.take(tree, {('a', 'y'), ('b',)}) == dict(a=dict(y=2), b=3)
  assert groups.put(tree, dict(a=dict(y=5))) == dict(a=dict(x=1, y=5), b=3)


def configuration(trainable='all', **sections):
  """A configuration of nothing but groups."""
  return experiment.ml_collections.ConfigDict(dict(train=dict(trainable=trainable), groups=sections))


def found(**sections):
  """Dict name -> paths of the groups of LABELS, as texts."""
  text = lambda paths: {'/'.join(map(str, path)) for path in paths}
  return {group.name: text(group.paths) for group in groups.of(configuration(**sections), LABELS)}


def test_where_selects_labels_paths_and_the_rest():
  router, wi, a, table = ('/'.join(map(str, path)) for path in LABELS)
  assert found() == {'': {router, wi, a, table}}
  assert found(router={}) == {'router': {router}, '': {wi, a, table}}
  assert found(x=dict(where='adapter,router'), rest={}) == {'x': {a, router}, 'rest': {wi, table}}
  assert found(a=dict(where='rest'), b=dict(where='*/experts/*')) == {'b': {wi, a}, 'a': {router, table}}
  assert found(x=dict(where='stack/0/experts/a,embed/*')) == {'x': {a, table}, '': {router, wi}}
  assert found(x=dict(where='all')) == {'x': {router, wi, a, table}}


@pytest.mark.parametrize('sections, said', [
    (dict(ruter={}), "groups.ruter.where='ruter': no parameter is in 'ruter'; nearest: router.* are: ad"),
    (dict(x=dict(where='router,decoder/*')), "no parameter is in 'decoder/.'"),
    (dict(adapter={}, expert={}), 'groups.expert.where=.*: stack/0/experts/a is in groups.adapter, too'),
    (dict(x=dict(where='all'), y=dict(where='rest')), "groups.y.where='rest': no parameter is in 'rest'"),
    (dict(x=dict(where='all', train=False)), 'no parameter trains, all are in x'),
    (dict(router=dict(turn=(2, 2))), r'groups.router.turn=\(2, 2\): .* nearest: \(1, 2\)'),
    ({'a/b': dict(where='router')}, "'a/b' is no name of a group"),
])
def test_a_mistake_is_one_line(sections, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    groups.of(configuration(**sections), LABELS)
  assert '\n' not in str(caught.value)


def test_a_part_and_groups_do_not_go_together():
  with pytest.raises(errors.UserError, match="train.trainable='expert' and groups.router both say"):
    groups.of(configuration('expert', router={}), LABELS)
  assert groups.described(configuration('expert')) == 'expert'
  assert groups.described(configuration(router={}, expert={})) == 'all'
  assert groups.described(configuration(router=dict(train=False))) == 'all but router'
  assert groups.described(configuration(adapter={}, rest=dict(train=False))) == 'adapter'


def arrays(seed):
  """A nested dict of random arrays like NAMES."""
  draw = lambda names: np.random.default_rng([seed, *map(len, map(str, names))]).normal(
      size=[SIZES[name] for name in names]).astype(np.float32)
  return jax.tree.map(draw, NAMES, is_leaf=lambda leaf: isinstance(leaf, tuple))


MAKES = dict(adamw=lambda n, s, **own: optimizers.adamw(n, s, **dict(weight_decay=0.1) | own),
             sgd=lambda n, s, **own: optimizers.sgd(n, s, momentum=0.9, **own),
             adafactor=lambda n, s, **own: optimizers.adafactor(n, s, momentum=0.9, min_dim_size_to_factor=2,
                                                                **own))


def trained(make, sections, first, number=6):
  """(parameters, state, optimizer) after steps from `first` with the groups of these sections."""
  members = groups.of(configuration(**sections), LABELS)
  own = lambda group: {} if group.weight_decay is None else dict(weight_decay=group.weight_decay)
  optimizer = groups.optimizer(members, lambda group, n, s: make(n, s, **own(group)), NAMES, arrays(0))
  part = lambda tree: groups.take(tree, groups.trained(members))
  params, state = part(arrays(0)), optimizer.init(part(arrays(0)))
  for step in range(first, first + number):
    params, state = optimizer.update(part(arrays(step + 1)), state, params, jnp.float32(0.01), step)
  return params, state, optimizer


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('make', MAKES.values(), ids=MAKES)
def test_groups_that_change_nothing(make):
  plain = make(NAMES, arrays(0))
  params, state = arrays(0), plain.init(arrays(0))
  for step in range(3):
    params, state = plain.update(arrays(step + 1), state, params, jnp.float32(0.01))
  for sections in ({}, dict(x=dict(where='all'))):
    grouped, slots, optimizer = trained(make, sections, 0, 3)
    assert_equal((grouped, slots), (params, state))                  # bit for bit, and in the same places
    assert optimizer.names == plain.names
  # Groups are programs of their own, in which products are rounded or fused.
  split = trained(make, dict(router={}, expert={}), 0, 3)
  test_step.assert_close(split[:2], (params, state))
  assert split[2].names == plain.names


@pytest.mark.parametrize('make', MAKES.values(), ids=MAKES)
def test_each_group_trains_as_if_it_were_alone(make):
  """Its rate and decay are its own, and its steps are those of its turns: 0, 1 and 4, 5."""
  rate, decay = 0.5, 0.3
  sections = dict(router=dict(rate=rate, weight_decay=decay, every=2, turn=(0, 2)),
                  expert=dict(every=2, turn=(1, 2)), rest=dict(train=False))
  params, state, optimizer = trained(make, sections, 0)
  at = ('stack', 0, 'router')
  part = lambda tree: tree['stack'][0]['router']
  alone = make(part(NAMES), part(arrays(0)), weight_decay=decay)
  weights, slots = part(arrays(0)), alone.init(part(arrays(0)))
  for step in (0, 1, 4, 5):
    weights, slots = alone.update(part(arrays(step + 1)), slots, weights, jnp.float32(0.01) * rate)
  assert_equal(part(params), weights)
  trees = [name for name, value in slots.items() if isinstance(value, dict)]
  assert_equal({name: part(state[name]) for name in trees}, {name: slots[name] for name in trees})
  counts = {name: value for name, value in slots.items() if name not in trees}
  assert_equal(state.get('turns', {}).get('router', {}), counts)
  assert set(state) == {*trees, *(['turns'] if counts else [])} and at in {path[:3] for path in LABELS}
  assert all('embed' not in state[name] for name in trees)           # what does not train has no slots
  assert jax.tree.structure(state) == jax.tree.structure(
      jax.tree.map(lambda leaf: 0, optimizer.names, is_leaf=lambda leaf: isinstance(leaf, tuple)))


def test_a_continued_alternation_is_an_undisturbed_one():
  sections = dict(router=dict(every=3, turn=(0, 2)), expert=dict(every=3, turn=(1, 2)))
  whole, _, _ = trained(MAKES['adamw'], sections, 0, 8)
  params, state, optimizer = trained(MAKES['adamw'], sections, 0, 4)   # in the middle of the second turn
  for step in range(4, 8):
    params, state = optimizer.update(arrays(step + 1), state, params, jnp.float32(0.01), step)
  assert_equal(params, whole)


def test_a_group_is_clipped_alone():
  grads = jax.tree.map(jnp.asarray, arrays(3))
  size = lambda tree: float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))
  members = groups.of(configuration(expert=dict(clip=0.5), router=dict(clip=0.0)), LABELS)
  clipped, norms = groups.clip(members, grads, 0, 2.0)
  part = lambda tree, name: next(groups.take(tree, group.paths) for group in members if group.name == name)
  assert norms.keys() == {'grad_norm', 'grad_norm/expert', 'grad_norm/router'}
  assert float(norms['grad_norm']) == pytest.approx(size(grads), rel=1e-6)
  assert float(norms['grad_norm/expert']) == pytest.approx(size(part(grads, 'expert')), rel=1e-6)
  assert size(part(clipped, 'expert')) == pytest.approx(0.5) and size(part(clipped, '')) == pytest.approx(2.0)
  assert_equal(part(clipped, 'router'), part(grads, 'router'))
  together, norms = groups.clip(groups.of(configuration(), LABELS), grads, 0, 2.0)
  assert_equal(together, optimizers.clip(grads, norms['grad_norm'], 2.0)) and norms.keys() == {'grad_norm'}


def test_a_gradient_whose_turn_it_is_not_counts_for_no_norm():
  grads = jax.tree.map(jnp.asarray, arrays(3))
  members = groups.of(configuration(expert=dict(turn=(1, 2))), LABELS)
  _, norms = groups.clip(members, grads, 0, 0.0)
  rest = groups.take(grads, members[-1].paths)
  assert float(norms['grad_norm/expert']) == 0 and norms['grad_norm'] == pytest.approx(optimizers.norm(rest))
  assert groups.clip(members, grads, 1, 0.0)[1]['grad_norm'] == pytest.approx(optimizers.norm(grads))


def plan_of(tmp_path, part, **changed):
  cfg = tiny_run.config(tmp_path, **changed)
  with cfg.unlocked():
    cfg.train.trainable = part
  return cfg, states.blueprint(cfg, states.make_mesh(cfg.mesh, jax.devices()[:1]))


@pytest.mark.parametrize('part', [
    pytest.param(part, marks=[pytest.mark.slow] * (part != 'expert')) for part in groups.PARTS])
def test_only_the_chosen_part_changes(tmp_path, part):
  cfg, plan = plan_of(tmp_path, part, **{'train.microbatches': 2})
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    state = states.init(cfg, plan)
    before = {name: np.asarray(x) for name, x in leaves(state['params']).items()}
    rng = np.random.default_rng(0)
    shapes = check.batch_shapes(cfg, cfg.train.batch_size)
    batch = {name: np.ones(s.shape, np.int32) for name, s in shapes.items()}
    batch['decoder_target_tokens'] = rng.integers(3, 200, batch['decoder_target_tokens'].shape, np.int32)
    state['step'] = state['step'] + 2                                # past the warm-up from 0
    state, _ = steps.make(cfg, plan)(state, check.place(batch, mesh))
  changed = {name for name, x in leaves(state['params']).items() if (np.asarray(x) != before[name]).any()}
  chosen = {name for name in before if groups.PARTS[part](name.split('/'))}
  assert changed <= chosen and changed                               # a gain at 1 may stay where it is
  assert {name for name in chosen if name.endswith(('wi', 'wo', 'wq'))} <= changed
  assert set(leaves(state['opt_state']['mu'])) == chosen


def test_expert_and_non_expert_are_everything(tmp_path):
  trained = [groups.trained(plan_of(tmp_path, part)[1].groups) for part in ('expert', 'non_expert', 'all')]
  assert trained[0] | trained[1] == trained[2] and not trained[0] & trained[1] and trained[0]


def test_a_part_that_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match="train.trainable='experts'; nearest: expert"):
    plan_of(tmp_path, 'experts')
  with pytest.raises(errors.UserError, match='has no such parameters'):
    plan_of(tmp_path, 'expert', **{'model.layers': (('d', 1),)})


ALTERNATING = dict(router=dict(every=2, turn=(0, 2), rate=0.5), expert=dict(every=2, turn=(1, 2), clip=0.1))


def test_shardings_change_nothing():
  """On 8 devices clipping and steps are as on one, with an axis of experts that is cut over some."""
  members = groups.of(configuration(**ALTERNATING), LABELS)
  optimizer = groups.optimizer(members, lambda group, n, s: optimizers.adafactor(n, s), NAMES, arrays(0))

  @jax.jit
  def run(params):
    state = optimizer.init(params)
    for step in range(3):
      grads, norms = groups.clip(members, arrays(step + 1), step, 1.0)
      params, state = optimizer.update(grads, state, params, jnp.float32(0.01), step)
    return params, state, norms

  with axes.use(axes.make_mesh(data=2, expert=4)) as mesh:
    place = lambda names, x: jax.device_put(x, jax.sharding.NamedSharding(mesh, axes.spec(names)))
    sharded = run(jax.tree.map(place, NAMES, arrays(0), is_leaf=axes.is_names))
  test_step.assert_close(jax.device_get(sharded), jax.device_get(run(arrays(0))))


@pytest.mark.slow
@pytest.mark.parametrize('devices, changed', [
    (1, {'train.microbatches': 4}),
    (8, {'mesh.expert': 2, 'mesh.model': 2, 'train.microbatches': 2})], ids=str)
def test_microbatches_and_devices_change_nothing(tmp_path, devices, changed):
  batches = [test_step.batch(seed=seed) for seed in range(3)]
  state, reports = test_step.run(test_step.config(tmp_path, groups=ALTERNATING), batches)
  other, theirs = test_step.run(test_step.config(tmp_path, groups=ALTERNATING, **changed), batches, devices)
  test_step.assert_close(other['params'], state['params'], rtol=1e-3, atol=1e-4)
  for name in ('loss/total', 'grad_norm', 'grad_norm/router', 'grad_norm/expert'):
    np.testing.assert_allclose([r[name] for r in theirs], [r[name] for r in reports], rtol=1e-5)
  assert [bool(report['grad_norm/expert'] > 0) for report in reports] == [False, False, True]
  assert state['opt_state']['turns'] == dict(router=dict(count=2), expert=dict(count=1))


LORA = {'blocks.m.experts': dict(name='lora', d_ff=32, rank=2), 'model.layers': (('m', 1),), 'groups': dict(
    adapter=dict(every=2, turn=(0, 2)), router=dict(every=2, turn=(1, 2)), rest=dict(train=False))}


@pytest.mark.slow
def test_adapters_of_a_frozen_base_go_on_in_the_middle_of_a_turn(tmp_path):
  """A checkpoint holds the adapter once, slots only of what trains, and goes on bit for bit."""
  cfg = tiny_run.config(tmp_path, **LORA)
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    step = steps.make(cfg, plan)
    batches = [check.place(test_step.batch(seed=seed), mesh) for seed in range(6)]

    def train(state, at):
      for batch in at:
        state, _ = step(state, batch)
      return state
    saved = checkpoint.Checkpoints(tmp_path / 'checkpoints', async_save=False)
    state = states.init(cfg, plan)
    first = {name: np.asarray(x) for name, x in leaves(state['params']).items()}
    state = train(state, batches[:3])
    saved.save(3, state, None, {})
    there = leaves({part: state[part] for part in ('params', 'opt_state')})
    whole = train(state, batches[3:])
    _, again, *_ = saved.restore(plan.shapes, lambda meta: None, print)
    again = train(again, batches[3:])
    saved.close()
  assert_equal(*({part: x for part, x in state.items() if part != 'key'} for state in (again, whole)))
  last = {name: np.asarray(x) for name, x in leaves(whole['params']).items()}
  adapter = {name for name in first if name.endswith(('/a', '/b'))}
  router = {name for name in first if name.endswith('router/w')}
  assert len(adapter) == 6 and len(router) == 1
  assert {name for name in first if (first[name] != last[name]).any()} == adapter | router
  assert {name for name in there if name.endswith(('/a', '/b'))} == {
      f'{part}/{name}' for part in ('params', 'opt_state/mu', 'opt_state/nu') for name in adapter}
  slots = {name.removeprefix('opt_state/mu/') for name in there if name.startswith('opt_state/mu/')}
  assert slots == adapter | router
  assert jax.tree.map(int, whole['opt_state']['turns']) == dict(adapter=dict(count=4), router=dict(count=2))


PROBE = """
    from stmoe import axes
    from stmoe.experts import mlp


    class Probe(mlp.Mlp):
      label = 'tuned'

      def __init__(self, d_model, *, num_experts, rngs):
        super().__init__(d_model, num_experts=num_experts, d_ff=8, rngs=rngs)
        self.gain = axes.param(mlp.nnx.initializers.ones, (num_experts, d_model), 'expert', 'expert_embed',
                               label='gain', rngs=rngs)

      def __call__(self, rows, key=None):
        return super().__call__(rows, key).scale(self.gain[...])
"""


def test_a_module_with_labels_touches_no_other_file(tmp_path, monkeypatch):
  (tmp_path / 'probe.py').write_text(textwrap.dedent(PROBE))
  monkeypatch.setattr(experts, '__path__', [*experts.__path__, str(tmp_path)])
  _, plan = plan_of(tmp_path, 'all', **{
      'blocks.m.experts': dict(name='probe'), 'groups': dict(
          gain=dict(rate=2.0), matrices=dict(where='*/experts/w?'), router={}, rest=dict(train=False))})
  members = {group.name: {path[-1] for path in group.paths} for group in plan.groups}
  assert members['gain'] == {'gain'} and members['matrices'] == {'wi', 'wo'}
  _, plan = plan_of(tmp_path, 'all', **{'blocks.m.experts': dict(name='probe'), 'groups': dict(tuned={})})
  assert {path[-1] for path in plan.groups[0].paths} == {'wi', 'wo', 'gain'}


@pytest.mark.parametrize('name, group, inside', [
    ('base/sizes:smoke', 'expert', 'experts'), ('soft_moe/sizes:smoke', 'head', 'head')])
def test_published_groups(name, group, inside):
  cfg, _ = experiment.load(name)
  plan = states.blueprint(cfg, states.make_mesh(cfg.mesh, jax.devices()[:1]))
  members = {one.name: one for one in plan.groups}
  every = {path for one in plan.groups for path in one.paths}
  assert members[group].paths == {path for path in every if inside in path} and members.keys() == {group, ''}
  assert members[group].clip == 0.0 or members[group].weight_decay == 3.0


def test_masked_gradients_are_those_of_whole_blocks_and_the_same_unrolled():
  paths = lambda *middle: {('stack', 'segments', 0, *middle, 'blocks', 1, name) for name in 'ab'}
  group = lambda paths: groups.group_of('central', paths, masked=0.5)
  unit = lambda *shape: dict(blocks={1: dict(a=jnp.ones(shape), b=jnp.ones(shape))}, other=jnp.ones(shape))
  mask = lambda group, segment, key=0: groups.mask([group], {'stack': {'segments': {0: segment}}},
                                                   jax.random.key(key))['stack']['segments'][0]
  masked = mask(group(paths()), unit(8, 3))
  kept = np.asarray(masked['blocks'][1]['a'])
  assert set(kept.sum(1)) == {0, 3} and (kept == masked['blocks'][1]['b']).all() and masked['other'].all()
  assert (mask(group(paths()), unit(8, 3), key=1)['blocks'][1]['a'] != kept).any()
  for repeat in range(8):
    alone = mask(group(paths(repeat)), {repeat: unit(3)})
    assert (alone[repeat]['blocks'][1]['a'] == kept[repeat]).all()
  assert mask(groups.group_of('central', paths()), unit(8, 3))['blocks'][1]['a'].all()


def test_a_group_may_last_several_turns():
  sections = dict(router=dict(every=2, turn=(0, 3)), expert=dict(every=2, turn=(1, 3), lasts=2))
  members = {group.name: group for group in groups.of(configuration(**sections), LABELS)}
  due = lambda name: [bool(members[name].due(jnp.int32(step))) for step in range(7)]
  assert due('router') == [True, True, False, False, False, False, True]
  assert due('expert') == [not here for here in due('router')]
  assert not groups.group_of('all', (), turn=(1, 2), lasts=2).alternates
  with pytest.raises(errors.UserError, match=r'groups.router.lasts=4: there are 3 turns; nearest: 3'):
    groups.of(configuration(router=dict(turn=(0, 3), lasts=4)), LABELS)


def test_a_proximal_group_is_held_where_its_turn_began():
  """By hand, with SGD: the gradient of 8 / 2 * mean((p - anchor)^2) over two entries is 4 (p - anchor)."""
  names, first = dict(w=('embed',)), dict(w=jnp.array([1.0, 2.0]))
  own = optimizers.sgd(names, first)
  own = own._replace(update=lambda grads, state, params, rate, _, moves, update=own.update: update(
      grads, state, params, rate, moves))
  held = optimizers.proximal(own, names, 8.0, lambda step: step % 2 == 0)
  params, state = first, held.init(first)
  for step, wanted in enumerate([[0.0, 2.0], [0.0 - 1 + 4, 2.0], [2.0, 2.0]]):
    params, state = held.update(dict(w=jnp.array([1.0, 0.0])), state, params, 1.0, jnp.int32(step))
    np.testing.assert_array_equal(params['w'], wanted)
  group = groups.group_of('a', {('w',)}, every=2, turn=(1, 3), proximal=1.0)
  assert [step for step in range(16) if group.begins(jnp.int32(step))] == [2, 8, 14]
