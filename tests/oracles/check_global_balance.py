"""Checks of the balance loss over a step of several microbatches, whose choices are counted one by one."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.core import choices


def accumulated(case):
  c = case.config
  scores = case.option('score_function', {name: name for name in choices.SCORES}, 'softmax')

  def build(scope):
    inner = dict(name='deepseek_moe', num_experts=c['E'], k=c['k'])
    return lookup.recipe('router', dict(name='balance', inner=inner, scope=scope, scores=scores))(
        1, rngs=nnx.Rngs(0))

  ctx = models_hf.context(np.zeros((1, c['T']), np.int32))

  @jax.jit
  def one(router, logits):
    def loss(logits):
      aux = router.decide(logits[None], ctx, {}).aux
      return c['coefficient'] * aux.losses['balance'], aux
    return jax.value_and_grad(loss, has_aux=True)(logits)

  whole, local, found = build('global'), build('microbatch'), []
  for logits in jnp.asarray(case['logits']):
    (value, aux), grad = one(whole, logits)
    whole.accumulate(aux)
    found.append((value, one(local, logits)[0][0], aux.statistics['balance_counts'].value, grad))
  for name, values in zip(('loss', 'local_loss', 'counts', 'grad_logits'), zip(*found)):
    case.assert_close(name, jnp.stack(values))
