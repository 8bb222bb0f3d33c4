"""Parameters that are rounded at every token are rounded once, before the loop; ids stay the same."""

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_plan

from stmoe.decode import ahead
from stmoe.decode import generate

LOOPS = 'while', 'scan'

# Blocks of two rows: of eight, they would have the shape of a matrix.
pytestmark = pytest.mark.usefixtures('one_size_of_blocks')


def traced(name, decode):
  """(program, its arguments) of a model of float32 parameters that computes in bfloat16."""
  plan, params, routers = tiny_plan.build(name, dtype='bfloat16')
  return generate.make(plan, decode, 4), (params, routers, tiny_plan.prompts(name, rows=5), jax.random.key(0))


def roundings(jaxpr, looped=False):
  """Yields the shapes of float32 arrays that are converted to bfloat16 inside of loops."""
  for eqn in jaxpr.eqns:
    if looped and eqn.primitive.name == 'convert_element_type':
      if (eqn.invars[0].aval.dtype, eqn.params['new_dtype']) == (jnp.float32, jnp.bfloat16):
        yield eqn.invars[0].aval.shape
    for inner in core.jaxprs_in_params(eqn.params):
      yield from roundings(getattr(inner, 'jaxpr', inner), looped or eqn.primitive.name in LOOPS)


@pytest.mark.parametrize('name, decode', [
    ('lm', dict(name='greedy')), pytest.param('t5', dict(name='beam', beams=2), marks=pytest.mark.slow),
    pytest.param('lm', dict(name='sample'), marks=pytest.mark.slow),
    pytest.param('lm', dict(name='contrast', routing_ranks=(1,)), marks=pytest.mark.slow)], ids=str)
def test_no_loop_rounds_a_matrix(name, decode, monkeypatch):
  program, arguments = traced(name, decode)
  matrices = {a.shape[-2:] for a in jax.tree.leaves(arguments[0]) if a.ndim > 2}
  found = {shape[-2:] for shape in roundings(jax.make_jaxpr(program)(*arguments).jaxpr)}
  assert not found & matrices
  same_ids(name, decode, monkeypatch)


def same_ids(name, decode, monkeypatch):
  """Asserts that the same is written where nothing is rounded ahead."""
  program, arguments = traced(name, decode)
  ids = np.asarray(program(*arguments))
  monkeypatch.setattr(ahead, 'run', lambda function, model, *arguments: function(model, *arguments))
  program, arguments = traced(name, decode)
  np.testing.assert_array_equal(program(*arguments), ids)


@pytest.mark.slow
def test_routers_that_learn_while_they_write_write_the_same(monkeypatch):
  same_ids('lm', dict(name='rewire', steps=1, interval=2), monkeypatch)


def test_other_uses_keep_an_array():
  """A product in float32, a value that a loop carries, one branch of several, two dtypes, a result."""
  half = lambda a: a.astype(jnp.bfloat16)
  def uses(choice, arrays):
    looked_up, product, carried, branch, two, result, looped = arrays
    turn = lambda c, _: (c + 1, half(c) + half(looped)[0])
    yield half(jnp.take(looked_up, jnp.array([1]), axis=0)), jax.checkpoint(jax.jit(half))(looked_up[:1])
    yield half(jax.lax.stop_gradient(looked_up))
    yield half(product) @ half(product), product @ product, half(two), two.astype(jnp.float16), result
    yield jax.lax.scan(turn, carried, length=2)[1]
    yield jax.lax.cond(choice, half, lambda b: half(b * 2), branch)
  arrays = [jnp.array(True), *[jnp.ones((2, 2))] * 7]
  dtypes = ahead.rounded(lambda arrays: list(uses(arrays[0], arrays[1:])), arrays)
  assert dtypes == [None, jnp.bfloat16, None, None, None, None, None, jnp.bfloat16]


def test_a_model_without_wider_arrays_is_traced_once():
  calls = []
  class Model(dict):
    dtype = jnp.float32
  jax.tree_util.register_pytree_node(Model, lambda m: ((m['w'],), None), lambda _, leaves: Model(w=leaves[0]))
  ahead.run(lambda model: calls.append(model['w'].dtype), Model(w=jnp.ones(2)))
  assert calls == [jnp.float32]
