"""Duo-LLM: random and learned modules, one budget of all layers, what is counted. Numbers: tests/oracles."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import flops
from stmoe.routers import duo_llm

MASK = np.array([[True] * 8, [True] * 5 + [False] * 3])


def router(num_virtual=2, **fields):
  return duo_llm.DuoLLM(3, num_virtual=num_virtual, rngs=nnx.Rngs(0), **fields)


def test_stage_one_draws_modules_and_evaluates_one(context, call):
  made, x = router(stage='random', at_eval='small'), jnp.ones((2, 8, 3))
  drawn = call(made, x, context(MASK, train=True, key=jax.random.key(0))).assignment
  assert set(np.asarray(drawn.expert)[MASK].tolist()) == {0, 1, 2} and drawn.rows_per_group == 8 / 3
  assert set(np.asarray(call(made, x, context(MASK)).assignment.expert)[MASK].tolist()) == {1}
  assert made.more_rows == 0 and router(target=0.25).more_rows == 0.75


def test_the_temperature_grows_to_its_last_value(context):
  made = router(tau=(1.0, 16.0), total_steps=4)
  at = lambda step, train=True: float(made.temperature(context(MASK, train=train).replace(step=step)))
  assert [at(step) for step in (0, 2, 4, 9)] == [1, 4, 16, 16] and at(0, train=False) == 16


@pytest.mark.parametrize('scope', duo_llm.SCOPES)
def test_losses_of_layers_add_up_to_one_square(scope):
  probs = np.random.default_rng(0).random((3, 2, 8)).astype(np.float32)            # of three layers
  spent, total = jnp.zeros((2, 8, 2)), 0.0
  for big in probs:
    total += duo_llm.budget(big, spent, MASK, 0.3, scope, jnp.float32(MASK.sum()))
    spent += jnp.stack([big, jnp.ones_like(big)], axis=-1)
  means = [probs.mean(0)[MASK].mean()] if scope == 'microbatch' else [probs.mean(0)[0].mean(),
                                                                      probs.mean(0)[1, :5].mean()]
  weights = [1] if scope == 'microbatch' else [8 / 13, 5 / 13]
  np.testing.assert_allclose(total, np.dot(weights, (np.array(means) - 0.3) ** 2), rtol=1e-5)


def test_training_computes_all_modules_and_evaluation_the_budget():
  name = 'duo_llm/testbed:size=laptop,stage=learned,frozen=False,target='
  cost = lambda target: flops.active_per_token(experiment.load(f'{name}{target}')[0])
  big = 6 * 2 * 3 * 128 * 512
  assert cost(0.75)['forward'] - cost(0.5)['forward'] == 0.25 * big
  assert cost(0.75)['train'] == cost(0.5)['train'] == 3 * (cost(0.5)['forward'] + 0.5 * big)


def test_mistakes_are_one_line():
  with pytest.raises(errors.UserError, match="at_eval='skip' of 1 virtual experts; nearest: at_eval='big'"):
    router(num_virtual=1, at_eval='skip')
  with pytest.raises(errors.UserError, match="at_eval='small' of 0 virtual experts; nearest: at_eval='big'"):
    router(num_virtual=0, at_eval='small')
