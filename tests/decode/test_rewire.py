"""Rewiring while decoding: rows by themselves, phases, the surest layers, steps back, and what is refused."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest
import tiny_plan

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.decode import generate
from stmoe.decode.strategies import rewire
from tests.decode import test_generate

LENGTH = test_generate.LENGTH
run = functools.partial(test_generate.run, 'lm', name='rewire')
FIELDS = dict(steps=3, optimizer='sgd', rate=1.0, layers=None, confident=1.0, cap=None, stop=False)


@functools.cache
def model():
  plan, params, routers = tiny_plan.build('lm')
  found = plan.model(params, routers)
  found.stacks()[-1].unroll()
  return found


@functools.partial(jax.jit, static_argnames='fields')
def learned(model, batch, fields):
  """(vectors, what their steps saw, losses before and after)."""
  rule = rewire.Rule(**FIELDS | dict(fields))
  chosen, zeros, adapting = rule.chosen(model, batch), rewire.zeros(model, batch), rewire.adapting(model)
  vectors, seen = rule.learn(adapting, batch, zeros, chosen)
  return vectors, seen, rewire.losses(adapting, batch, zeros), rewire.losses(adapting, batch, vectors)


def learn(**fields):
  return learned(model(), tiny_plan.prompts('lm'), tuple(fields.items()))


@pytest.mark.slow
@pytest.mark.parametrize('fields', [
    {}, dict(steps=0), dict(refresh=False), dict(interval=LENGTH), dict(top_k=1, temperature=0.5),
    dict(confident=0.5, layers=(0, 1))], ids=str)
def test_with_vectors_of_nearly_0_all_ways_are_greedy(fields):
  np.testing.assert_array_equal(run(**dict(steps=1, rate=1e-9, interval=2) | fields),
                                test_generate.recomputed('lm'))


@pytest.mark.slow
def test_losses_fall_and_rows_learn_by_themselves():
  vectors, seen, before, after = learn()
  assert sorted(vectors) == [0, 1] and vectors[0].shape == (3, 4) and seen['losses'].shape == (3, 3)
  np.testing.assert_allclose(seen['losses'][0], before, rtol=1e-6)
  # Rows have 4, 1 and 3 tokens: of a single token nothing is predicted, and nothing learned.
  assert (np.asarray(after - before)[[0, 2]] < -1e-4).all() and before[1] == 0 and not vectors[0][1].any()
  batch = jax.tree.map(lambda a: a[::-1], tiny_plan.prompts('lm'))
  others = batch | dict(decoder_input_tokens=batch['decoder_input_tokens'].at[0, 1:3].set(7))
  moved = learned(model(), others, ())[0]
  for layer, vector in moved.items():    # row 2 is now row 0 and another text; row 0 is the last
    np.testing.assert_allclose(vector[2], vectors[layer][0], rtol=1e-4, atol=1e-6)
    assert np.abs(vector[0] - vectors[layer][2]).max() > 1e-3


def test_a_row_whose_loss_rises_goes_a_step_back_and_vectors_have_a_cap():
  vectors, seen, _, after = learn(optimizer='adamw', rate=50.0, steps=6, stop=True, cap=3.0)
  losses = np.asarray(seen['losses'])                                # [6, 3]
  rose = losses[1:] > losses[:-1]
  assert rose.any(axis=0).tolist() == [True, False, False]
  for row in np.flatnonzero(rose.any(axis=0)):
    step = np.flatnonzero(rose[:, row])[0]                           # the last one before it rose
    np.testing.assert_allclose(losses[step + 2:, row], losses[step, row], rtol=1e-6)
    np.testing.assert_allclose(after[row], losses[step, row], rtol=1e-6)
  assert max(np.abs(vector).max() for vector in vectors.values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize('refresh', [True, False])
def test_vectors_go_on_from_phase_to_phase(refresh):
  """They learn on the prompt, and from there, after two tokens, on prompt and tokens; row 1 has ended."""
  batch, strategy = tiny_plan.prompts('lm'), rewire.Rewire(
      steps=2, rate=1.0, optimizer='sgd', confident=1.0, interval=2, refresh=refresh)
  ids, real = np.array([[5, 6, 7], [8, 9, 3]]), np.array([[True, True, True], [True, False, True]])

  def decoded(model):
    _, state, step = strategy.phases(model, batch, LENGTH, None)
    for number in range(2):
      logits, state = step(ids[number], real[number], state)
    return state[1], logits

  def by_hand(model):
    rule, adapting = strategy.rule, rewire.adapting(model)
    first, _ = rule.learn(adapting, batch, rewire.zeros(model, batch), rule.chosen(model, batch))
    whole = {name: np.zeros((3, 6), np.int32) for name in batch}
    for row, count in enumerate(np.asarray(batch['decoder_segment_ids']).sum(1)):
      tokens = [*np.asarray(batch['decoder_input_tokens'])[row, :count], *ids[real[:, row], row]]
      whole['decoder_input_tokens'][row, :len(tokens)] = tokens
      whole['decoder_segment_ids'][row, :len(tokens)] = 1
      whole['decoder_positions'][row, :len(tokens)] = range(len(tokens))
    vectors, _ = rule.learn(adapting, whole, first, rule.chosen(model, batch))
    logits, _ = adapting(whole | rewire.given(vectors), alone=True)
    return vectors, logits, whole['decoder_segment_ids'].sum(1) - 1

  vectors, logits = jax.jit(decoded)(model())
  wanted, every, last = jax.jit(by_hand)(model())
  for layer, vector in wanted.items():
    np.testing.assert_allclose(vectors[layer], vector, rtol=1e-4, atol=1e-6)
  if refresh:                            # else it remembers keys and values of routers before
    np.testing.assert_allclose(logits, np.asarray(every)[np.arange(3), last], rtol=1e-4, atol=1e-5)


def test_the_surest_layers_learn():
  """With logits a thirtieth as large a router is less sure; other layers than `layers` are not asked."""
  unsure = jax.tree.map(lambda a: a, model())
  first, _ = modules.routers(unsure)
  first.w[...] /= 30
  batch, rule = tiny_plan.prompts('lm'), rewire.Rewire(confident=0.5).rule
  both = lambda model: (rule.chosen(model, batch), rewire._confidence(model, batch, 2))
  chosen, sure = jax.jit(both)(unsure)
  assert chosen[1].all() and not chosen[0].any()
  assert 0.5 <= sure[0].min() and sure[0].max() < 0.55 and sure[1].max() <= 1      # 2 of 4 alike experts
  chosen = rewire.Rewire(layers=(0,)).rule.chosen(unsure, batch)
  assert sorted(chosen) == [0] and chosen[0].all()


def test_a_share_of_layers_is_not_rounded_up_for_the_rounding_of_floats(monkeypatch):
  monkeypatch.setattr(rewire.modules, 'routers', lambda model: [None] * 100)
  monkeypatch.setattr(rewire, '_confidence', lambda model, batch, number: list(np.arange(number)[:, None]))
  chosen = rewire.Rewire(confident=0.07).rule.chosen(None, dict(decoder_segment_ids=np.ones((1, 3))))
  assert [layer for layer, learns in chosen.items() if learns] == [*range(93, 100)]


def test_confidence_is_that_of_the_router_with_the_number():
  """Attention of all experts is sure; it is router 0, and reports after the layer, router 1."""
  gates = dict(name='st_moe', num_experts=2, k=2, normalize_gates=False, second_policy='all')
  block = dict(layer='moe', router=dict(name='switch', num_experts=4), experts=dict(name='mlp', d_ff=8),
               attention=dict(name='bam', router=gates))
  make = lookup.recipe('model', tiny_plan.MODELS['lm'] | dict(layers=(('m', 1),), vocab_size=11))
  made, batch = make(blocks=dict(m=block), rngs=nnx.Rngs(0)), tiny_plan.prompts('lm')
  made.stacks()[-1].unroll()
  assert [router.num_experts for router in modules.routers(made)] == [2, 4]
  rule = rewire.Rewire(confident=0.5).rule
  chosen = jax.jit(lambda made: rule.chosen(made, batch))(made)
  assert chosen[0].all() and not chosen[1].any()


@pytest.mark.parametrize('says, plan, fields', [
    ('has an encoder', dict(name='t5'), {}),
    ('router switch_max has no logits to add to', dict(router='switch_max'), {}),
    ("no field 'stepz'; nearest: 'steps'", {}, dict(stepz=1))], ids=lambda x: str(x)[:20])
def test_mistakes_are_one_line(says, plan, fields):
  with pytest.raises(errors.UserError) as error:
    generate.make(tiny_plan.build(plan.pop('name', 'lm'), **plan)[0], dict(name='rewire', **fields), 4)
  assert says.replace("'", '') in str(error.value).replace("'", '')


def test_layers_that_there_are_not_are_refused_before_anything_is_compiled():
  with pytest.raises(errors.UserError, match=r'layers=\(0, 2\): the model has routers 0 to 1; nearest: 1'):
    rewire.Rewire(layers=(2, 0)).rule.chosen(model(), tiny_plan.prompts('lm'))


@pytest.mark.slow
def test_the_same_on_eight_devices():
  from stmoe import axes
  decode = dict(name='rewire', steps=2, interval=3, confident=0.5)
  expected = test_generate.run('lm', rows=8, **decode)
  plan, params, routers = tiny_plan.build('lm')
  with axes.use(axes.make_mesh(data=2, expert=4)) as mesh:
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'expert')))
    batch = jax.tree.map(lambda a: jax.device_put(a, split), tiny_plan.prompts('lm', rows=8))
    program = generate.make(tiny_plan.Plan(plan.graphdef, plan.shapes, mesh), decode, LENGTH)
    ids = program(params, routers, batch, jax.random.key(0))
  np.testing.assert_array_equal(ids, expected)
