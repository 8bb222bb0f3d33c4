"""Checks of routing replay (arXiv:2510.11370): the choices of one pass, given to one of drifted logits."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import contract


def replayed(case):
  """A traced replay of the wanted scores, whose matrix is 1: what it is called with are the logits."""
  c = case.config
  name, fields = {
      ('softmax', False): ('smoe', {}), ('softmax', True): ('deepseek_moe', {}),
      ('sigmoid', False): ('deepseek_v3', dict(route_scale=c['scale']))}[
          c['score_function'], c['softmax_before_topk']]
  inner = dict(name=name, num_experts=c['E'], k=c['k'], **fields)
  made = lookup.recipe('router', dict(name='replay', inner=dict(name='trace', inner=inner)))(
      c['E'], rngs=nnx.Rngs(0))
  innermost = made.inner.inner
  innermost.w[...] = jnp.eye(c['E'])
  if c['expert_bias']:
    innermost.bias[...] = jnp.asarray(case['expert_bias'])
  return made


@functools.partial(jax.jit, static_argnames='given')
def dense(router, logits, recorded, given):
  """f32[T,E] weights, and the edges of all tokens' choices where those are traced."""
  ctx = contract.Context(**contract.numbered(jnp.ones((1, len(logits)), bool)), step=jnp.int32(0),
                         tokens=jnp.float32(len(logits)), given=dict(choices=recorded[None]))
  routed = (router if given else router.inner)(logits[None], ctx, {})
  edges = routed.aux.records['edges']
  experts = edges['expert'][0].reshape(-1, len(logits)).T            # [T, k]
  return routed.assignment.masks()[1].sum(-1)[0], experts


def router(case):
  made = replayed(case)
  rollout, experts = dense(made, case['rollout_logits'], case['recorded'], given=False)
  case.assert_close('rollout_probs', rollout)
  case.assert_close('recorded', np.sort(experts, axis=-1).astype(np.int32))
  logits = case['train_logits']
  live, chosen = dense(made, logits, case['recorded'], given=False)
  case.assert_close('live_probs', live)
  changed = (np.sort(chosen, axis=-1) != case['recorded']).any(-1).sum()
  case.assert_close('changed', np.int32(changed))
  loss = lambda logits: jnp.sum(dense(made, logits, case['recorded'], given=True)[0] * case['cotangent'])
  case.assert_close('replay_probs', dense(made, logits, case['recorded'], given=True)[0])
  case.assert_close('grad_train_logits', jax.jit(jax.grad(loss))(logits))
