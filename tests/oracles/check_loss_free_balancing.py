"""Checks of loss-free balancing: biases under recorded scores, by the sign rule and re-centred."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core import bias as bias_lib
from stmoe.core import metrics
from stmoe.routers import loss_free_balancing


# Rules of `balance`, by the words of the files.
RULES = {'b += u*sign(mean(c)-c)': 'sign',
         'b += u*sign(mean(c)-c); then the step is made zero-mean': 'sign',
         'b += u*(mean(c)-c)/mean(c)': 'magnitude', 'sign': 'sign', 'magnitude': 'magnitude'}


def _trajectory(case):
  c = case.config
  centred = case.option('recentered', {True: True, False: False}, False)
  rule = case.option('rule', RULES, 'sign')
  mask = np.ones((1, c['T']), bool)

  @jax.jit
  def step(bias, logits):
    a, aux = loss_free_balancing.loss_free_balancing(logits[None], bias, mask, c['T'], c['k'])
    moved = bias_lib.update(bias, aux.load, c['update_rate'], centred, rule)
    return moved, (a, aux.load, metrics.max_vio(aux.load))

  # The scores are sigmoids; ours start from their logits.
  logits = jnp.log(case['scores']) - jnp.log1p(-case['scores'])      # [steps, T, E]
  biases, experts, loads, vios = [jnp.zeros(c['E'])], [], [], []
  for each in logits:
    bias, (a, load, vio) = step(biases[-1], each)
    assert bool(assignment.live(a).all())
    biases.append(bias)
    experts.append(np.sort(a.expert.reshape(c['k'], c['T']).T, axis=-1))
    loads.append(load)
    vios.append(vio)
  case.assert_close('bias', np.stack(biases))
  case.assert_close('counts', np.stack(loads))
  case.assert_close('max_vio', np.stack(vios))
  # The order of a token's choices has no meaning.
  np.testing.assert_array_equal(np.stack(experts), np.sort(case['top_k_index'], axis=-1))


def bias_update(case):
  _trajectory(case)


def bias_update_centred(case):
  _trajectory(case)
