"""Checks of expert choice at router and layer level; whole models are in check_expert_choice_models.py."""

import jax
import jax.numpy as jnp
import numpy as np
import routers_flaxformer
import routers_mesh

from stmoe.core import assignment
from stmoe.core import losses
from stmoe.routers import expert_choice
from stmoe.routers import expert_selection
from stmoe.routers import gshard


def masked_router(case):
  routers_flaxformer.masked_router(case, expert_choice.expert_choice, k=0)


def moe_layer(case):
  routers_flaxformer.moe_layer(case)


def praxis_gating(case):
  config, logits = case.config, jnp.asarray(case['logits'])
  groups, size, experts = logits.shape
  # v1 divides first: floor(S // E * c).
  capacity = int(size // experts * config['capacity_factor'])
  a, _ = jax.jit(lambda logits: expert_choice.expert_choice(
      logits, jnp.ones((groups, size), bool), capacity))(logits)
  # Its slots ascend by gate, ours descend.
  slots = lambda array: np.asarray(array).reshape(groups, experts, capacity)[..., ::-1]
  case.assert_close('gate', slots(a.weight))
  case.assert_close('token_index', slots(a.token))


def praxis_gating_v2(case):
  logits = gshard.cap_logits(jnp.asarray(case['logits']), case.config.get('gating_logit_cap', 0.0))
  expected = case['combine_tensor']
  real = case['paddings'] == 0 if 'paddings' in case else np.ones(logits.shape[:2], bool)
  a, _ = expert_choice.expert_choice(logits, jnp.asarray(real), expected.shape[-1])
  dispatch, combine = (np.asarray(m, np.float32) for m in assignment.masks(a))
  # Its slots are in token order, and those of padding are empty: sort our slots by the token they hold.
  size = logits.shape[1]
  held = np.where(dispatch.any(axis=1), dispatch.argmax(axis=1), size)             # [G, E, C]
  order = np.argsort(held, axis=-1, kind='stable')[:, None]          # [G, 1, E, C]
  theirs = np.where(expected.any(axis=1), expected.argmax(axis=1), size)
  order = np.take_along_axis(order, np.argsort(np.argsort(theirs, -1, kind='stable'), -1)[:, None], axis=-1)
  case.assert_close('combine_tensor', np.take_along_axis(combine, order, axis=-1))
  case.assert_close('dispatch_tensor', np.take_along_axis(dispatch, order, axis=-1))


def capped(case):
  config = case.config
  k, b, entropy = config['k'], config['max_experts_per_token'], config['entropy_coefficient']
  scores = jnp.asarray(case['scores'])[None]
  solve = lambda sweeps: expert_choice.capped(scores, k, b, entropy, sweeps)[0]    # [E, S]
  case.assert_close('assignment_100_iterations', solve(100), like='assignment')
  optimum = solve(40000)
  case.assert_close('assignment', optimum)
  # The chosen tokens, as sets, of the router itself (softmax of log scores gives the scores back).
  a, _ = expert_choice.expert_choice(jnp.log(scores), jnp.ones(scores.shape[:2], bool), k,
                                     max_experts_per_token=b, entropy=entropy, sweeps=40000)
  chosen = np.sort(np.asarray(a.token).reshape(-1, k), axis=-1)
  clear = _clear(case['assignment'], k)
  np.testing.assert_array_equal(chosen[clear], case['token_index'][clear])
  # The weights are the scores of the chosen, not the plan.
  expected = np.take_along_axis(case['scores'].T, np.asarray(a.token).reshape(-1, k), axis=1)
  np.testing.assert_allclose(np.asarray(a.weight).reshape(-1, k), expected, rtol=1e-5)


def _clear(plan, k):
  """bool[E], the rows of plan f[E,S] whose k-th largest entry is not tied with another one."""
  falling = np.pad(-np.sort(-plan, axis=-1), ((0, 0), (0, 1)), constant_values=-1)
  return falling[:, k - 1] - falling[:, k] > 1e-3


def mesh_gating(case):
  def reference_loss(logits, mask, aux):
    del aux
    # S * mean_s(P_s^2 * n): ours for each group, but every group weighs the same.
    probs = jax.nn.softmax(jnp.where(mask[..., None], logits, -1e9), axis=1)
    each = [losses.popularity(probs[g:g + 1], mask[g:g + 1]) for g in range(len(mask))]
    return jnp.mean(jnp.stack(each))

  routers_mesh.compare(case, expert_selection.expert_selection, reference_loss)
