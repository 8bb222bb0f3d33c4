"""Checks of quantile balancing: steps of several microbatches, their choices, weights, quantiles and bias."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import bias as bias_lib
from stmoe.core import choices
from stmoe.core import contract
from stmoe.routers import quantile_balancing


def steps(case):
  c = case.config
  scores = case.option('score_function', {name: name for name in choices.SCORES}, 'softmax')
  # The router moves its bias alone here: the class refuses one choice of gate 1, the reference has it.
  router = quantile_balancing.QuantileBalancing(
      1, num_experts=c['E'], k=c['k'], normalize_gates=False, ema=c.get('ema', 0.0), bins=None,
      rngs=nnx.Rngs(0))
  over_sum = c['k'] > 1 or scores == 'softmax'                        # softmax comes after the choice there
  mask = np.ones((1, c['T']), bool)

  @jax.jit
  def one(logits, bias):
    a, aux, required = quantile_balancing.quantile_balancing(
        logits[None], bias, mask, c['k'], scores=scores, normalize_gates=over_sum)
    weights = jnp.zeros(logits.shape).at[a.token[0], a.expert[0]].set(a.weight[0])
    return a.expert.reshape(c['k'], -1).T, weights, bias_lib.quantile(required, mask, c['k']), aux.load

  found, biases = [], [router.bias[...]]
  for step in range(c['steps']):
    rows = range(step * c['microbatches'], (step + 1) * c['microbatches'])
    parts = [one(case['logits'][i], router.bias[...]) for i in rows]
    found += parts
    q = contract.mean(jnp.stack([part[2] for part in parts]), jnp.ones(len(parts)))
    load = jnp.sum(jnp.stack([part[3] for part in parts]), axis=0)
    router.commit(contract.Aux(losses={}, load=load, metrics={}, statistics=dict(required=q.together())))
    biases.append(router.bias[...])
  case.assert_close('indices', np.sort(np.stack([part[0] for part in found]), axis=-1))
  case.assert_close('probs', np.stack([part[1] for part in found]))
  case.assert_close('quantile', np.stack([part[2] for part in found]))
  case.assert_close('bias', np.stack(biases))
