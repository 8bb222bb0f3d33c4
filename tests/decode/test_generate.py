"""Strategies against recomputation and brute force; what ends; what is refused; several devices."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_plan

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.data.text import vocab
from stmoe.decode import generate
from stmoe.decode import loop
from stmoe.decode.strategies import beam
from stmoe.decode.strategies import contrast
from stmoe.decode.strategies import sample

LENGTH = 6


def run(model, length=LENGTH, rows=3, **decode):
  plan, params, routers = tiny_plan.build(model)
  program = generate.make(plan, decode, length)
  return np.asarray(program(params, routers, tiny_plan.prompts(model, rows=rows), jax.random.key(0)))


@functools.cache
def recomputed(name, length=LENGTH, rows=3):
  """Greedy ids [B,length] by recomputing everything for every token; ties would be seen."""
  plan, params, routers = tiny_plan.build(name)
  model, batch = plan.model(params, routers), tiny_plan.prompts(name, rows=rows)
  found = np.zeros((rows, length), np.int32)
  for row in range(rows):
    written = []
    while len(written) < length and written[-1:] != [tiny_plan.EOS]:
      logits = np.sort(tiny_plan.next_logits(name, model, batch, row, written))
      assert logits[-1] - logits[-2] > 1e-3
      written.append(int(np.argmax(tiny_plan.next_logits(name, model, batch, row, written))))
    found[row, :len(written)] = written
  return found


@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_greedy_is_recomputation_with_argmax(name):
  np.testing.assert_array_equal(run(name, name='greedy'), recomputed(name))


@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_one_beam_is_greedy(name):
  np.testing.assert_array_equal(run(name, name='beam', beams=1, length_penalty=0.0), recomputed(name))


def test_eos_ends_a_row_and_only_that():
  """With the second token of row 0 as EOS: rows before it go on, what follows it is 0."""
  free = recomputed('lm')
  eos = int(free[0, 1])
  ids = run('lm', name='greedy', eos_id=eos)
  for got, whole in zip(ids, free):
    ends = np.flatnonzero(whole == eos)
    if len(ends):
      whole = np.where(np.arange(LENGTH) <= ends[0], whole, 0)
    if tiny_plan.EOS not in whole:
      np.testing.assert_array_equal(got, whole)
  assert ids[0, 1] == eos and not ids[0, 2:].any()


def test_several_ids_end_a_text():
  step = lambda ids, real, state: (jnp.roll(jnp.eye(5)[ids], 1, axis=-1), state)         # 1, 2, 3, 4, 0, ...
  first = jnp.eye(5)[jnp.array([1, 4])]
  ids = loop.run(first, (), step, lambda x, i: x.argmax(-1), 4, eos_id=(3, 0))
  assert ids.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
  class Model:
    def begin(self, batch, length, key):
      return first, Cache()
    def step(self, ids, real, cache):
      return jnp.roll(jnp.eye(5)[ids], 1, axis=-1) * 9, cache
  found = lookup.recipe('strategy', dict(name='beam', beams=1, length_penalty=0.0, eos_id=(3, 2)))()(
      Model(), None, 4, None)
  assert found[0].tolist() == [1, 2, 0, 0]


@jax.tree_util.register_static
class Cache:
  take = reorder = lambda self, rows: self


def test_beams_live_on_beside_many_ends():
  """1, 2 and 3 end and lead; 5 is the second best of the others, and its text the best at this penalty."""
  first, after_4 = jnp.log(jnp.array([0.1, 0.2, 0.19, 0.18, 0.17, 0.16])), jnp.zeros(6)
  class Model:
    def begin(self, batch, length, key):
      return first[None], Cache()
    def step(self, ids, real, cache):
      return jnp.where((ids == 5)[:, None], 99 * jnp.eye(6)[1], after_4), cache
  found = beam.Beam(beams=2, length_penalty=10.0, eos_id=(1, 2, 3))(Model(), None, 2, None)
  assert found.tolist() == [[5, 1]]


def test_no_penalty_makes_a_text_of_what_is_ruled_out():
  """The model rules out 1, the end; fewer texts live than there are beams, and the penalty is above 2."""
  logits = jnp.array([[0.0, -1e9]])
  class Model:
    def begin(self, batch, length, key):
      return logits, Cache()
    def step(self, ids, real, cache):
      return jnp.repeat(logits, len(ids), axis=0), cache
  ids, score = beam.Beam(beams=2, length_penalty=2.0).search(Model(), None, 4, None)
  assert ids.tolist() == [[0, 0, 0, 0]] and score.tolist() == [0.0]


def test_texts_end_at_the_model_s_own_ids():
  cfg = lambda **model: types.SimpleNamespace(model=model)
  letters, used = [ord(c) + 3 for c in 'abc'], vocab.Bytes()
  assert generate.text(cfg(end_ids=(letters[1], 9)), used, np.array(letters)) == 'a'
  assert generate.text(cfg(), used, np.array([*letters, 1, letters[0]])) == 'abc'
  assert generate.ends(cfg(), used) == (1,) and generate.ends(cfg(end_ids=(4, 5)), used) == (4, 5)
  decode = dict(name='sample', top_k=2)
  assert generate.ending(decode, cfg(), used) == decode | dict(eos_id=(1,))
  assert generate.ending(decode | dict(eos_id=7), cfg(), used) == decode | dict(eos_id=7)


def test_the_loop_stops_when_all_rows_have_ended():
  """The first token of every row as EOS of its own run: no step of the model is taken."""
  taken = []
  def step(ids, real, state):
    jax.debug.callback(lambda: taken.append(1))
    return jnp.eye(4)[jnp.array([2, 3])], state
  ids = loop.run(jnp.eye(4)[jnp.array([1, 1])], (), step, lambda x, i: x.argmax(-1), 5, eos_id=1)
  jax.effects_barrier()
  assert not taken and ids.tolist() == [[1, 0, 0, 0, 0]] * 2
  ids = loop.run(jnp.eye(4)[jnp.array([1, 2])], (), step, lambda x, i: x.argmax(-1), 5, eos_id=3)
  jax.effects_barrier()
  assert ids.tolist() == [[1, 2, 2, 2, 2], [2, 3, 0, 0, 0]] and len(taken) == 4


VOCAB, SHORT = 4, 3


@functools.cache
def brute_force(name, row, alpha):
  """(ids, score) of the best of all texts of up to SHORT tokens that end."""
  plan, params, routers = tiny_plan.build(name, vocab=VOCAB)
  model, batch = plan.model(params, routers), tiny_plan.prompts(name, vocab=VOCAB, rows=2)
  after = functools.cache(lambda written: np.asarray(jax.nn.log_softmax(
      tiny_plan.next_logits(name, model, batch, row, written))))
  others = [i for i in range(VOCAB) if i != tiny_plan.EOS]
  texts = [(*head, tiny_plan.EOS) for n in range(SHORT) for head in itertools.product(others, repeat=n)]
  score = lambda text: sum(after(text[:i])[token] for i, token in enumerate(text)) / beam.penalty(
      len(text), alpha)
  best = max(texts, key=score)
  return list(best) + [0] * (SHORT - len(best)), score(best)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_many_beams_are_brute_force(name):
  plan, params, routers = tiny_plan.build(name, vocab=VOCAB)
  for alpha in (0.0, 3.0):
    search = jax.jit(lambda params, batch, alpha=alpha: beam.Beam(beams=40, length_penalty=alpha).search(
        plan.model(params, routers), batch, SHORT, None))
    ids, scores = search(params, tiny_plan.prompts(name, vocab=VOCAB, rows=2))
    for row in range(2):
      text, score = brute_force(name, row, alpha)
      assert ids[row].tolist() == text
      np.testing.assert_allclose(scores[row], score, rtol=1e-4)


def test_few_beams_find_what_one_does_not():
  """First token 2 leads to nothing certain, first token 3 to a certain end: two beams find it."""
  table = np.full((4, 4), -20.0, np.float32)
  table[0, 2], table[0, 3] = np.log(0.6), np.log(0.4)
  table[2, :] = np.log(0.25)
  table[3, 1] = 0.0

  class Table:
    vocab_size = 4
    def begin(self, batch, length, key):
      return jnp.asarray(table)[jnp.zeros(1, int)], Rows()
    def step(self, ids, real, cache):
      return jnp.asarray(table)[ids], cache

  class Rows:
    def take(self, rows):
      return ()
  jax.tree_util.register_pytree_node(Rows, lambda r: ((), None), lambda a, c: Rows())
  Rows.take = lambda self, rows: self
  Rows.reorder = lambda self, rows: self
  ids, score = beam.Beam(beams=2, length_penalty=0.0).search(Table(), {}, 3, None)
  assert ids.tolist() == [[3, 1, 0]]
  np.testing.assert_allclose(score, np.log(0.4), rtol=1e-5)
  ids, score = beam.Beam(beams=1, length_penalty=0.0).search(Table(), {}, 3, None)
  assert ids[0, 0] == 2


def test_contrast_of_hand_made_logits():
  scores = contrast.contrast(jnp.array([[2.0, 1.5, -3.0]]), jnp.array([[1.0, -1.0, 5.0]]), 0.1, 0.5)
  assert scores.tolist() == [[2.5, 2.75, -np.inf]]                   # ln 0.1 = -2.3: the third is out


@pytest.mark.parametrize('fields, token', [
    ({}, 1), (dict(weak_temperature=4.0), 0),                        # 3 - 0.125 against 2.25 + 0.125
    (dict(temperature=0.25), 0),                                     # 12 - 0.5 against 9 + 0.5
    (dict(temperature=0.2, weak_temperature=0.01), 0)])              # -35 against 61, but 7.5 < 10 - 2.3
def test_contrast_divides_both_passes_by_their_temperatures(monkeypatch, fields, token):
  logits = {None: jnp.array([[2.0, 1.5, -3.0]]), (2,): jnp.array([[1.0, -1.0, 5.0]])}
  passes = lambda model, ranks: types.SimpleNamespace(
      begin=lambda batch, length, key: (logits[ranks], ()),
      step=lambda ids, real, cache: (logits[ranks], cache))
  monkeypatch.setattr(contrast, 'routed_by', passes)
  assert contrast.Contrast(**fields)(None, {}, 1, None).tolist() == [[token]]


@pytest.mark.slow
@pytest.mark.parametrize('fields', [
    dict(beta=0.0), dict(routing_ranks=(3,), strong_ranks=(3,)),
    dict(routing_ranks=(0, 1), beta=0.7, alpha=0.01)], ids=str)
def test_contrast_is_greedy_without_weight_and_with_equal_passes(fields):
  if 'strong_ranks' in fields:
    one, other = run('lm', name='contrast', **fields), run('lm', name='contrast', **fields | dict(beta=0.0))
    np.testing.assert_array_equal(one, other)
    return
  np.testing.assert_array_equal(run('lm', name='contrast', **fields), recomputed('lm'))


@pytest.mark.slow
def test_contrast_with_poor_routing_is_something_else():
  assert (run('lm', name='contrast', beta=3.0, alpha=0.001, routing_ranks=(3,)) != recomputed('lm')).any()


@pytest.mark.slow
def test_sampling():
  logits = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
  kept = lambda **fields: np.isfinite(sample.shortlist(logits, **fields))[0].tolist()
  assert kept() == [True] * 3 and kept(top_k=2) == [True, False, True]
  assert kept(top_k=1) == [True, False, False]
  assert kept(top_p=0.5) == [True, False, False] and kept(top_p=0.51) == [True, False, True]
  np.testing.assert_array_equal(run('lm', name='sample', top_k=1), recomputed('lm'))
  np.testing.assert_array_equal(run('lm', name='sample', temperature=1e-4), recomputed('lm'))
  one, other = run('lm', name='sample', temperature=3.0), run('lm', name='sample', temperature=3.0)
  np.testing.assert_array_equal(one, other)
  assert (one != recomputed('lm')).any()


@pytest.mark.parametrize('name, decode', [
    ('lm', dict(name='greedy')), pytest.param('t5', dict(name='greedy'), marks=pytest.mark.slow),
    pytest.param('t5', dict(name='beam', beams=2), marks=pytest.mark.slow)], ids=str)
def test_same_ids_on_eight_devices(name, decode):
  """Experts split over four devices, rows over eight."""
  expected = run(name, rows=8, **decode)
  plan, params, routers = tiny_plan.build(name)
  with axes.use(axes.make_mesh(data=2, expert=4)) as mesh:
    place = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    split = lambda a: jax.device_put(a, place(('data', 'expert')))
    batch = jax.tree.map(split, tiny_plan.prompts(name, rows=8))
    program = generate.make(tiny_plan.Plan(plan.graphdef, plan.shapes, mesh), decode, LENGTH)
    ids = program(params, routers, batch, jax.random.key(0))
  np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize('devices', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_host_hears_of_every_token(devices):
  plan, params, routers = tiny_plan.build('lm')
  heard = {}
  tell = lambda i, ids: heard.__setitem__(int(i), np.asarray(ids).tolist())
  with axes.use(axes.make_mesh(data=devices, devices=jax.devices()[:devices])) as mesh:
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'expert')))
    batch = jax.tree.map(lambda a: jax.device_put(a, split), tiny_plan.prompts('lm', rows=8))
    there = tiny_plan.Plan(plan.graphdef, plan.shapes, mesh)
    program = generate.make(there, dict(name='greedy'), LENGTH, tell)
    ids = np.asarray(program(params, routers, batch, jax.random.key(0)))
    jax.effects_barrier()
  assert heard and [heard[i] for i in range(len(heard))] == ids.T[:len(heard)].tolist()
  assert not ids[:, len(heard):].any()                               # rows that had all ended
  with pytest.raises(errors.UserError, match='decode.name=beam knows a text only at its end'):
    generate.make(plan, dict(name='beam'), LENGTH, tell)


@pytest.mark.parametrize('says, decode', [
    ("no strategy is called 'gredy'; nearest: 'greedy'", dict(name='gredy')),
    ("no field 'beam'; nearest: 'beams'", dict(name='beam', beam=3)),
    ('decode.beams=0', dict(name='beam', beams=0)),
    ('decode.temperature=0', dict(name='sample', temperature=0)),
    ('decode.top_p=1.5', dict(name='sample', top_p=1.5)), ('decode.alpha=2', dict(name='contrast', alpha=2)),
    ('from 0 to 3', dict(name='contrast', routing_ranks=(4,)))], ids=lambda x: str(x))
def test_mistakes_are_one_line(says, decode):
  with pytest.raises(errors.UserError) as error:
    generate.make(tiny_plan.build('lm')[0], decode, 4)
  assert says.replace("'", '') in str(error.value).replace("'", '')


def test_routers_without_ranks_or_that_need_neighbours_are_refused():
  with pytest.raises(errors.UserError, match='switch_max has no ranks'):
    generate.make(tiny_plan.build('lm', router='switch_max')[0], dict(name='contrast'), 4)
  with pytest.raises(errors.UserError, match='expert_choice cannot be decoded'):
    generate.make(tiny_plan.build('lm', router='expert_choice')[0], dict(name='greedy'), 4)
