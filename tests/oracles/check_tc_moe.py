"""Checks of TC-MoE: LibMoE's layer, and the official block with the signs that it loses."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_libmoe
import numpy as np

from stmoe.core import balance
from stmoe.experts import glu
from stmoe.routers import tc_moe


def layer(case):
  c, mask = case.config, jnp.ones(case['x'].shape[:2], bool)
  assert c['router_width'] == 2 * c['E'] + c['null_slots'] == len(case['router'])
  biases = dict(negative_bias=c['bias_negative'], null_bias=c['bias_null'])
  sequence = jnp.zeros(mask.shape, jnp.int32)

  def run(x, router, w2):
    logits = x @ router.T                                            # [B, T, 2E+Z]
    a, aux = tc_moe.tc_moe(logits, mask, c['k'], c['E'], choose=models_libmoe.recorded(case),
                           sequence=sequence, **biases)
    y = models_libmoe.execute(x, a, models_libmoe.bank(case, w2))
    probs = tc_moe.probabilities(logits, c['E'], **biases)
    found = dict(balance_loss=c['balance_loss_coef'] * _balance_of_batch(case, probs),
                 reward_loss=c['reward_factor'] * aux.losses['reward'])
    loss = found['balance_loss'] + found['reward_loss'] + c['router_z_loss_coef'] * aux.losses['z']
    found |= dict(logits=logits, probs=probs, output=y, z_loss=aux.losses['z'], aux_loss=loss,
                  weights=tc_moe.weights(probs, case['selected'], c['E']))
    return jnp.sum(y * case['cotangent']) + loss, (found, aux)

  args = [jnp.asarray(case[name]) for name in ('x', 'router', 'w2')]
  grads, (found, aux) = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*args)
  for name, value in found.items():
    case.assert_close(name, value)
  models_libmoe.same_experts(case, found['probs'], c['k'])
  repeated = np.array([len({*row}) < c['k'] for row in (case['selected'] % c['E']).reshape(-1, c['k'])])
  case.assert_close('repeated_expert', repeated.reshape(mask.shape))
  # The released loop keeps one of two outputs of an expert: elsewhere it agrees.
  once = ~case['repeated_expert']
  np.testing.assert_allclose(found['output'][once], case['output_released'][once], rtol=1e-4, atol=1e-5)
  if c['B'] == 1:                                                    # then theirs is the formula
    case.assert_close('balance_loss', c['balance_loss_coef'] * aux.losses['balance'])
  for name, grad in zip(('grad_x', 'grad_router', 'grad_w2'), grads):
    case.assert_close(name, grad)


def _balance_of_batch(case, probs):
  """The reference's balance loss: the counts are those of all sequences, over each one's own number."""
  c, selected = case.config, case['selected']
  named = selected < 2 * c['E']                                      # [B, T, k]
  counts = np.bincount(selected[named] % c['E'], minlength=c['E'])   # [E]
  f = counts / named.sum(axis=(1, 2))[:, None]                       # [B, E]
  expert = np.where(named, selected % c['E'], c['E'])
  shares = balance.shares(tc_moe.by_expert(probs, c['E']), expert, jnp.ones(probs.shape[:2], bool))
  return balance.expert_loss(shares._replace(f=jnp.asarray(f, jnp.float32)[:, None]))


def official_block(case):
  c, mask = case.config, jnp.ones(case['x'].shape[:2], bool)
  selected = case['selected'].reshape(*mask.shape, c['k'])
  minus = (selected >= c['E']) & (selected < 2 * c['E'])
  assert c['negative_choices'] == minus.sum() and c['null_choices'] == (selected >= 2 * c['E']).sum()
  assert c['null_experts'] == len(case['router']) - 2 * c['E']
  bank = glu.Glu(c['D'], num_experts=c['E'], d_ff=c['F'], activation='silu', rngs=nnx.Rngs(0))
  for ours, theirs in (('wi', 'gate_proj'), ('wg', 'up_proj'), ('wo', 'down_proj')):
    getattr(bank, ours)[...] = jnp.asarray(case[theirs].swapaxes(1, 2))
  x = jnp.asarray(case['x'])
  logits = x @ case['router'].T
  given = lambda scores, k: jnp.asarray(selected)
  a, _ = jax.jit(lambda s: tc_moe.tc_moe(s, mask, c['k'], c['E'], choose=given))(logits)
  probs = tc_moe.probabilities(logits, c['E'], -1.0, -10.0)
  flat = lambda a: np.asarray(a).reshape(-1, a.shape[-1])
  case.assert_close('logits', flat(logits))
  case.assert_close('probs', flat(probs))
  case.assert_close('weights', flat(tc_moe.weights(probs, selected, c['E'])))
  models_libmoe.same_experts(case, flat(probs), c['k'])
  case.assert_close('output_intended', models_libmoe.execute(x, a, bank))
  case.ignore('output_released', 'the signs of negative experts are lost there')
