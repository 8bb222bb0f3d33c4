"""Log-likelihoods against sums over recomputed logits, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_plan

from stmoe.decode import rank


@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_scores_are_sums_of_log_probabilities(name):
  plan, params, routers = tiny_plan.build(name)
  model, prompts = plan.model(params, routers), tiny_plan.prompts(name, rows=2)
  targets = [[5, 3, 1], [7, 1]]
  batch = {key: a for key, a in prompts.items() if key.startswith('encoder')}
  rows = {key: np.zeros((2, 8), np.int32) for key in (
      'target_tokens', 'input_tokens', 'loss_weights', 'segment_ids', 'positions')}
  expected = np.zeros(2)
  for row, target in enumerate(targets):
    given = [0]
    if name == 'lm':
      real = int(prompts['decoder_segment_ids'][row].sum())
      given = np.asarray(prompts['decoder_input_tokens'])[row, :real].tolist()
    text = given + target
    end = len(text) - 1
    rows['input_tokens'][row, :end], rows['target_tokens'][row, :end] = text[:-1], text[1:]
    rows['segment_ids'][row, :end], rows['positions'][row, :end] = 1, np.arange(end)
    rows['loss_weights'][row, len(given) - 1:end] = 1
    for i, token in enumerate(target):
      logits = tiny_plan.next_logits(name, model, prompts, row, target[:i])
      expected[row] += np.asarray(jax.nn.log_softmax(logits))[token]
  batch |= {f'decoder_{key}': jnp.asarray(a) for key, a in rows.items()}
  found = jax.jit(lambda model, batch: rank.details(model, batch, alone=True))(model, batch)
  np.testing.assert_allclose(found['score'], expected, rtol=1e-4)
  assert not found['greedy'].any() and found['drop_frac'] == 0
  logits = jax.jit(lambda model, batch: model(batch, alone=True)[0])(model, batch)
  best = batch | dict(decoder_target_tokens=logits.argmax(-1))
  assert jax.jit(lambda model, batch: rank.details(model, batch, alone=True)['greedy'])(model, best).all()
