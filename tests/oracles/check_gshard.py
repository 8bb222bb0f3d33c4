"""Checks of GShard's top-2 gating against praxis and Mesh-TensorFlow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import routers_mesh

from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.routers import gshard


def praxis_capacity(config, size, experts):
  """Returns C: what is given, or floor(S * cf / E) rounded up to a multiple of 4 where that is more."""
  capacity = config['expert_capacity_argument']
  if config['capacity_factor'] is not None:
    automatic = int(size * config['capacity_factor'] / experts)
    capacity = -(-automatic // 4) * 4 if automatic > capacity else capacity
  assert capacity == config.get('resulting_capacity', capacity)      # the translation, not the case
  return capacity


def _draws(case, policy):
  """Returns f32[G,S,1], our draws that choose what the reference's do, or None where it draws nothing."""
  if policy == 'all':
    if 'uniform' in case:
      case.ignore('uniform', 'the reference draws nothing by this policy')
    return None
  uniform = case['uniform']
  if policy == 'random':
    return uniform[..., None]
  # Theirs are for the Gumbel trick, f32[G,S,E]; ours invert the distribution: take the middle of the bin.
  logits = gshard.cap_logits(jnp.asarray(case['logits']), case.config['gating_logit_cap'])
  probs = jax.nn.softmax(logits, axis=-1)
  first = jax.nn.one_hot(probs.argmax(axis=-1), probs.shape[-1], dtype=bool)
  noisy = jnp.where(first, -jnp.inf, logits - jnp.log(-jnp.log(uniform)))
  rest = jnp.where(first, 0, probs)
  taken = noisy.argmax(axis=-1)[..., None]
  below = jnp.take_along_axis(jnp.cumsum(rest, axis=-1) - rest / 2, taken, axis=-1)
  return below / rest.sum(axis=-1, keepdims=True)


def praxis_top2(case):
  config = case.config
  logits = jnp.asarray(case['logits'])
  capacity = praxis_capacity(config, *logits.shape[1:])
  mask = case['paddings'] == 0 if 'paddings' in case else np.ones(logits.shape[:2], bool)
  policy = case.option('second_expert_policy', dict(all='all', random='random', sampling='sampling'))
  uniform, cotangent = _draws(case, policy), case['cotangent']

  def f(logits):
    logits = gshard.cap_logits(logits, config['gating_logit_cap'])
    a, aux = gshard.gshard(
        logits, mask, capacity, second_policy=policy, uniform=uniform,
        threshold=config['second_expert_threshold'], normalize_after_drop=not config['normalise_before_drop'])
    dispatch, combine = assignment.masks(a)
    balance = aux.losses['balance']
    if not mask.all():
      # Every group weighs the same, however many real tokens it has; and praxis' original behaviour
      # (which also normalises before the drop) counts real tokens but divides f and P by S. The other one
      # divides by the share of real tokens + 1e-6.
      probs = jax.nn.softmax(logits, axis=-1)
      share = jnp.mean(mask, axis=1)
      share = (share if config['normalise_before_drop'] else share / (share + 1e-6)) ** 2
      balance = jnp.mean(losses.balance_of_groups(probs, choices.choose(probs, 1), mask) * share)
    reached = jnp.where(mask, metrics.experts_per_token(a), -1)
    over = {name: aux.metrics[name] for name in ('over_capacity_1', 'over_capacity_2')}
    return dict(aux=balance, combine=jnp.sum(cotangent * combine)), dict(
        over, aux_loss=balance, combine_tensor=combine, dispatch_tensor=dispatch.astype(jnp.float32),
        dispatch_0_1_2=jnp.array([jnp.sum(reached == n) for n in range(3)]))

  grads, values = jax.jit(jax.jacrev(f, has_aux=True))(logits)
  for name, value in values.items():
    case.assert_close(name, value)
  for name, value in grads.items():
    case.assert_close(f'grad_{name}_wrt_logits', value)


def mesh_top2(case):
  config = case.config
  route = functools.partial(gshard.gshard, second_policy=config['second_policy'],
                            threshold=config['second_threshold'], uniform=routers_mesh.uniform(case))

  def reference_loss(logits, mask, aux):
    if mask.all():                                                   # then ours needs no translation
      second = 0.5 * aux.losses['second_place'] if config['use_second_place_loss'] else 0
      return aux.losses['balance'] + second
    # f and P count real tokens but divide by S.
    probs = jax.nn.softmax(logits, axis=-1)
    choice, share = choices.choose(probs, 2), jnp.mean(mask, axis=1) ** 2
    loss = jnp.mean(losses.balance_of_groups(probs, choice[..., :1], mask) * share)
    if config['use_second_place_loss']:
      rest = losses.without_first(probs, choice[..., 0])
      loss += 0.5 * jnp.mean(losses.balance_of_groups(rest, choice[..., 1:], mask) * share)
    return loss

  routers_mesh.compare(case, route, reference_loss)
