"""What `import stmoe` offers: a layer in a model and loop of one's own, runs opened from Python."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stmoe
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.runs import directory as rundir
from tests.docs import pages

TINY = {'train.steps': 2, 'train.batch_size': 8, 'train.log_every': 1, 'train.stats_every': 2,
        'eval.every': 2, 'eval.batches': 1, 'eval.batch_size': 8, 'checkpoint.every': 2, 'data.length': 32,
        'data.vocab': 'bytes', 'model.vocab_size': 384, 'model.d_model': 16, 'model.head_dim': 8,
        'model.num_heads': 2, 'model.layers': (('dm', 1),), 'blocks.m.group_size': 32,
        'blocks.m.executor': 'einsum', 'blocks.m.router.num_experts': 4}


def test_importing_stmoe_imports_no_jax():
  code = ('import sys, stmoe; assert stmoe.__version__ and "layer" in dir(stmoe); '
          'print([name for name in ("jax", "numpy", "flax", "tensorflow") if name in sys.modules])')
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        check=True).stdout.strip() == '[]'
  with pytest.raises(AttributeError, match='layers_of'):
    getattr(stmoe, 'layers_of')  # noqa: B009


class Model(nnx.Module):
  """A model of somebody: an embedding, a sparse layer, a head."""

  def __init__(self, router, rngs, **fields):
    self.embed = nnx.Embed(11, 8, rngs=rngs)
    self.sparse = stmoe.layer(router, 8, num_experts=4, d_ff=16, executor='einsum', rngs=rngs, **fields)
    self.head = nnx.Linear(8, 11, rngs=rngs)

  def __call__(self, tokens, **context):
    x = self.embed(tokens)
    y, aux, _ = self.sparse(x, stmoe.Context.of(tokens, **context))
    return self.head(x + y), aux


@nnx.jit
def step(model, optimizer, tokens, key):
  def loss(model):
    logits, aux = model(tokens[:, :-1], key=key, train=True)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    return nll + 0.01 * sum(aux.losses.values()), aux
  (value, aux), grads = nnx.value_and_grad(loss, has_aux=True)(model)
  optimizer.update(model, grads)
  model.sparse.commit(aux)
  return value, aux


@pytest.mark.parametrize('router', ['switch', 'deepseek_v3'])
def test_a_loop_of_ones_own_trains_a_layer(router):
  model = Model(router, nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)
  tokens = jnp.arange(4 * 9).reshape(4, 9) % 7
  before = nnx.to_pure_dict(nnx.state(model.sparse))
  losses = [float(step(model, optimizer, tokens, jax.random.key(i))[0]) for i in range(12)]
  assert losses[-1] < losses[0] - 0.5
  after = nnx.to_pure_dict(nnx.state(model.sparse))
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
  assert all(jax.tree.leaves(moved)), moved                          # router, its state, and experts
  assert ('bias' in moved['inner']['router']) == (router == 'deepseek_v3')


def test_a_layer_is_that_of_a_configuration():
  made = stmoe.layer('st_moe', 8, num_experts=4, d_ff=16, experts='glu', rngs=nnx.Rngs(0))
  section = dict(name='moe', router=dict(name='st_moe', num_experts=4), experts=dict(name='glu', d_ff=16))
  recipe = lookup.recipe('layer', section)(8, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 6, 8))
  y, z = jax.jit(lambda a, b, x: (a(x)[0], b(x, contract.Context.of(x), {})[0]))(made, recipe, x)
  np.testing.assert_array_equal(y, z)


def test_layers_around_and_memory_across_layers():
  x = jnp.ones((2, 6, 8))
  around = stmoe.layer('rmoe', 8, num_experts=4, experts=dict(name='mlp', d_ff=16), rngs=nnx.Rngs(0))
  y, aux, carry = jax.eval_shape(around, x)
  assert y.shape == x.shape and aux.load.shape == (4,) and carry
  assert jax.eval_shape(around, x, None, carry)[2] == carry
  own = stmoe.layer('moe_plus_plus', 8, num_experts=4, d_ff=16, rngs=nnx.Rngs(0))
  assert type(own.inner).__name__ == 'MoEPlusPlus'
  dense = stmoe.layer('dense', 8, d_ff=16, rngs=nnx.Rngs(0))
  assert jax.eval_shape(dense, x)[1] is None


@pytest.mark.parametrize('name, fields, says', [
    ('swich', {}, "no router is called 'swich'; nearest: switch"),
    ('switch', dict(num_expert=4), "layer 'switch' has no field 'num_expert'; nearest: num_experts"),
    ('switch', dict(num_experts=4, d_ff=0), "layer 'switch'.experts.d_ff=0: expected a whole number"),
    ('switch', dict(num_experts=4), "layer 'switch'.experts: experts 'mlp' needs the field 'd_ff'"),
    ('rmoe', dict(num_experts=4, d_ff=8), "'d_ff' is a field of layer rmoe and of experts mlp; nearest: "
                                         'experts=dict(d_ff=8)')])
def test_a_mistake_in_a_layer_is_a_line(name, fields, says):
  with pytest.raises(errors.UserError) as error:
    stmoe.layer(name, 8, **fields, rngs=nnx.Rngs(0))
  assert says in str(error.value) and '\n' not in str(error.value)


@pytest.fixture(scope='module')
def lines(tmp_path_factory):
  """The ten lines of the README, run on a tiny model: the names they set and what they print."""
  said = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
    patch.chdir(tmp_path_factory.mktemp('somewhere'))
    code = pages.titled('README.md', 'ten lines')
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(compile(code.replace("{'train.steps': 20}", repr(TINY)), 'README.md', 'exec'), names)
    names['run'].path = names['run'].path.resolve()
  return names, said.getvalue(), {'__name__': 'page'}


@pytest.fixture
def run(lines):
  return lines[0]['run']


def test_the_ten_lines_of_the_readme(lines):
  names, said, _ = lines
  assert '(1, 9, 384)' in said and "'decoder_01'" in said
  assert names['run'].path.name == 'lm_quickstart_method=switch,smoke'


def test_a_configuration_in_the_hand_is_trained_as_its_name_is(run, monkeypatch):
  """What is trained already is only read; and another configuration of the name has a folder of its own."""
  monkeypatch.chdir(run.path.parents[1])
  texts = [f'{field}={value}' for field, value in TINY.items()]
  config, name = experiment.load('lm/quickstart:method=switch,smoke', texts)
  assert stmoe.train(name, overrides=TINY).path.resolve() == run.path
  assert stmoe.train(config, run.path).history.done == run.history.done
  other, _ = experiment.load(name, [*texts, 'seed=1'])
  assert rundir.default(name, config).resolve() == run.path
  assert re.fullmatch(rf'{run.path.name}-[0-9a-f]{{8}}', rundir.default(name, other).name)


def test_a_run_answers(run):
  importlib.import_module('stmoe.train.loop')                        # the package stays what may be called
  assert callable(stmoe.train) and run.history.last('loss/ce') > 0
  text = 'def f(x):'
  logits = run.logits(text)
  [ids] = run.vocabulary.encode([text])
  assert logits.shape == (1, len(ids), 384)
  np.testing.assert_allclose(run.logits([text, 'a'])[:1], logits, atol=1e-5)
  np.testing.assert_allclose(run.logits(np.asarray([ids])), logits, atol=1e-5)
  np.testing.assert_allclose(run.logits(text + '!')[:, :len(ids)], logits, atol=1e-5)    # it looks back only
  assert run.generate([dict(inputs='def')], 3) == [run.generate('def', 3)]
  assert run.generate(dict(inputs='def'), 3) == run.generate('def', 3)
  with pytest.raises(errors.UserError, match='prompt 0 is no object with a text "inputs"'):
    run.generate([{'given/domain': 1}])
  with pytest.raises(errors.UserError, match='prompt 1 is no object with a text "inputs"'):
    run.generate(['a', 3])
  assert isinstance(run.generate('def', 3), str) and len(run.generate(['a', 'b'], 3, name='sample')) == 2
  held_out, trained = next(run.batches()), next(run.batches({'data.eval_split': 'train'}))
  assert run.logits(held_out).shape == (8, 32, 384) and run.config.data.eval_split == 'validation'
  assert (held_out['decoder_target_tokens'] != trained['decoder_target_tokens']).any()
  with pytest.raises(errors.UserError, match='nearest: config.data.files'):
    run.batches({'data.fils': 'a.txt'})


@pytest.mark.parametrize('block', ['knocked out', 'the logit lens', 'activation patching'])
def test_looks_inside_of_the_page(run, lines, monkeypatch, capsys, block):
  """The page's code, on the tiny model, by its meaning: what is taken from a text is in the other one."""
  monkeypatch.setattr(stmoe, 'open', lambda path, was=stmoe.open: was(run.path), raising=False)
  names = lines[2]
  exec(compile(pages.titled('docs/routing.md', block), 'routing.md', 'exec'), names)
  said = capsys.readouterr().out
  if block == 'knocked out':
    assert float(said.split()[0]) > 0 and said.split()[1] == 'False'
  elif block == 'the logit lens':
    assert said.splitlines()[-1] == 'decoder_01.hidden 1.0'
  else:
    other, patched, without, steered, by_place = said.splitlines()
    assert float(patched) < 1e-5 < 1e-2 < min(float(without), float(steered), float(other))
    assert [x < 1e-5 for x in json.loads(by_place)] == [False] * 9 + [True]


def test_states_are_put_in_place_of_others_by_their_names(run):
  states = run.states(['def f(x):', 'abc'])
  assert list(states) == ['decoder_00.hidden', 'decoder_01.hidden']
  assert all(x.shape == (2, 9, 16) and x.dtype == np.float32 for x in states.values())
  one = run.states('def g(x):')['decoder_00.hidden']
  put = lambda y: y.at[:1, :9].set(one)
  patched = run.logits('def f(x):', {'decoder_00.hidden': put})
  np.testing.assert_allclose(patched, run.logits('def g(x):'), atol=1e-5)
  assert np.abs(run.logits('def f(x):') - run.logits('def g(x):')).max() > 1e-3


def test_a_run_writes_with_the_checkpoint_that_was_opened_and_says_what_it_is(run, monkeypatch):
  asked = []
  monkeypatch.setattr(stmoe.api.interactive, 'generate', lambda *words: asked.append(words[-1]) or ['x'])
  stmoe.open(run.path, step=2).generate('a')
  again = stmoe.open(run.path)
  again.generate('a')
  assert asked == [2, None]
  assert re.fullmatch(f"<Run '{run.path}': lm, [0-9,]+ parameters>", repr(again))
  again.model = modules.wrapped(again.model, lookup.constructor('router', 'trace'))
  np.testing.assert_array_equal(again.logits('a'), run.logits('a'))
  with pytest.raises(errors.UserError, match='run.model was replaced since'):
    again.generate('a')


def test_routing_is_arrays_and_columns(run):
  routing = run.routing(['def f(x):', 'abc'])
  [(layer, arrays)] = routing.items()
  experts, weights = arrays['experts'], arrays['weights']
  assert layer == 'decoder_01' and experts.shape == weights.shape == (2, 9, 1)
  assert (experts[0] >= 0).any() and (experts[1, 3:] == -1).all() and (weights[experts < 0] == 0).all()
  table = run.table(['def f(x):', 'abc'])
  assert {len(column) for column in table.values()} == {(experts >= 0).sum()}
  at = (table['row'] == 0) & (table['choice'] == 0)
  np.testing.assert_array_equal(table['expert'][at], experts[0, table['position'][at], 0])
  assert ''.join(table['token'][at & (table['position'] > 0)]) == 'def f(x)'[:at.sum() - 1]


def test_frames_need_pandas_and_say_so(run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pandas', None)
  with pytest.raises(errors.UserError, match='pip install pandas'):
    run.frame('abc')
  monkeypatch.setitem(sys.modules, 'pandas', types.SimpleNamespace(DataFrame=dict))
  assert sorted(run.frame('abc')) == sorted(run.table('abc'))


@pytest.mark.parametrize('asked, says', [('x' * 40, 'the longest text has 40 tokens; the model reads 1 to '
                                                    'data.length=32'), ('', 'has 0 tokens'),
    ([1, 2], r'a text is no str; ids are given as an array, numpy.array\(\[\[1, 2, 3\]\]\)'),
    (np.array([[1, 384]]), r'ids are int64\[1,2\] from 1 to 384; wanted: i32\[B,T\] of 0 to 383'),
    (np.array([[-1]]), 'from -1 to -1'), (np.array([[1.0]]), r'ids are float64\[1,1\]')])
def test_texts_that_do_not_fit_are_a_line(run, asked, says):
  with pytest.raises(errors.UserError, match=says):
    run.logits(asked)


TOKENS = jnp.ones((2, 6), jnp.int32)


@pytest.mark.parametrize('call, says', [
    (lambda of: of(TOKENS[:, :5]), r'x is a float32\[2,6,8\], the context one of \[2, 5\] tokens; wanted'),
    (lambda of: TOKENS, r'ctx is a int32\[2,6\]; wanted: .*stmoe.Context.of\(tokens\)'),
    (lambda of: of(TOKENS, mask=jnp.array([3, 6])), r'mask is of \[2\]; wanted: one of \[2, 6\], True at'),
    (lambda of: of(TOKENS[:0]), r'there are no tokens: \[0, 6\] rows and tokens of each; wanted: at least'),
    (lambda of: of(jnp.zeros((2, 0, 8))), r'there are no tokens: \[2, 0\]'),
    (lambda of: of(TOKENS.astype(jnp.float32)), r'tokens are float32\[2, 6\]; wanted: ids i32\[B,T\], or')])
def test_a_context_that_does_not_fit_is_a_line(call, says):
  made = stmoe.layer('switch', 8, num_experts=4, d_ff=16, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=says):
    jax.eval_shape(lambda x: made(x, call(stmoe.Context.of)), jnp.ones((2, 6, 8)))


@pytest.mark.parametrize('name, fields', [('hash', {}), ('deepseek_v4', dict(hashed=True, k=2))])
def test_ids_that_a_table_has_not_are_not_routed_in_silence(name, fields):
  made = stmoe.layer(name, 8, num_experts=4, d_ff=16, vocab_size=7, executor='einsum', **fields,
                     rngs=nnx.Rngs(0))
  x, ids = jnp.ones((2, 3, 8)), jnp.array([[0, 6, 7], [-1, 3, 9]])
  mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)                     # the id 9 is of padding
  with pytest.raises(errors.UserError, match='ids are from -1 to 7, and the router looks up 0 to 6; wanted'):
    made(x, stmoe.Context.of(ids, mask))
  y = jax.jit(lambda ids: made(x, stmoe.Context.of(ids, mask))[0])(ids)
  assert jnp.isnan(y).all(-1).tolist() == [[False, False, True], [True, False, False]]
  np.testing.assert_allclose(y[0, :2], made(x[:1, :2], stmoe.Context.of(ids[:1, :2]))[0][0], rtol=1e-5)


def test_rows_without_a_batch_and_a_seed_without_rngs_are_lines():
  made = stmoe.layer('switch', 8, num_experts=4, d_ff=16, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=r'x is a float32\[6,8\]; wanted: x \[B,T,D\]'):
    made(jnp.ones((6, 8)))
  with pytest.raises(errors.UserError, match=r'rngs is a int; wanted: flax.nnx.Rngs\(0\)'):
    stmoe.layer('switch', 8, num_experts=4, d_ff=16, rngs=0)


def test_training_without_a_key_warns_that_noise_is_left_out(recwarn):
  made = stmoe.layer('vmoe', 8, num_experts=4, d_ff=16, rngs=nnx.Rngs(0))
  trained = lambda **key: jax.eval_shape(lambda x: made(x, stmoe.Context.of(TOKENS, train=True, **key)),
                                         jnp.ones((2, 6, 8)))
  trained(key=jax.random.key(0))
  assert not recwarn.list
  with pytest.warns(UserWarning, match='without a key: noise, jitter and dropout of the layer are left out'):
    trained()
