"""Checks of routing replay (arXiv:2510.11370): the choices of one pass, given to one of drifted logits."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import choices
from stmoe.core import contract


def replayed(case):
  """A traced replay of the wanted scores, whose matrix is 1: what it is called with are the logits.

  Megatron-LM's softmax after the choice is the probabilities of the chosen over their sum. Its other scores
  are over their sum where a token has several.
  """
  c = case.config
  scores = case.option('score_function', {name: name for name in choices.SCORES})
  before = case.option('softmax_before_topk', {True: True, False: False}, False)
  inner = dict(name='quantile_balancing', num_experts=c['E'], k=c['k'], scores=scores, selection='scores',
               normalize_gates=False, bins=None)
  made = lookup.recipe('router', dict(name='replay', inner=dict(name='trace', inner=inner)))(
      c['E'], rngs=nnx.Rngs(0))
  innermost = made.inner.inner
  innermost.w[...] = jnp.eye(c['E'])
  # The class refuses one choice of gate 1; the reference has it.
  innermost.normalize_gates = not before if scores == 'softmax' else c['k'] > 1
  if 'expert_bias' in case and scores == 'softmax':
    case.ignore('expert_bias', 'the reference reads it for the other scores only')
  elif 'expert_bias' in case:
    innermost.bias[...] = -jnp.asarray(case['expert_bias'])          # ours is taken from the scores
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
  made, scale = replayed(case), case.config['scale'] or 1.0          # of all scores

  def weights(logits, given):
    combine, experts = dense(made, logits, case['recorded'], given)
    return scale * combine, experts
  rollout, experts = weights(case['rollout_logits'], given=False)
  case.assert_close('rollout_probs', rollout)
  case.assert_close('recorded', np.sort(experts, axis=-1).astype(np.int32))
  logits = case['train_logits']
  live, chosen = weights(logits, given=False)
  case.assert_close('live_probs', live)
  changed = (np.sort(chosen, axis=-1) != case['recorded']).any(-1).sum()
  case.assert_close('changed', np.int32(changed))
  loss = lambda logits: jnp.sum(weights(logits, given=True)[0] * case['cotangent'])
  case.assert_close('replay_probs', weights(logits, given=True)[0])
  case.assert_close('grad_train_logits', jax.jit(jax.grad(loss))(logits))
