"""Checks of SparseMixer, version 1 and 2, and of the Switch gate beside them, with their draws given."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import choices
from stmoe.core import losses
from stmoe.routers import grin
from stmoe.routers import sparsemixer
from stmoe.routers import switch


def v1(case):
  c = case.config
  draws = _drawn(case, ['exp_draws', 'uniform_draws'])
  logits, omega, outputs = (jnp.asarray(case[name]) for name in ('logits', 'omega', 'expert_out'))
  case.option('logits_kind', dict.fromkeys((c['logits_kind'],)))     # how they were made, no setting

  def route(logits):
    kept = sparsemixer.contenders(logits, logits, c['jitter_eps'])
    return kept, *_one_group(sparsemixer.sparsemixer, logits, epsilon=c['jitter_eps'], draws=draws)

  def value(logits, omega, outputs):
    _, gates, _, aux = route(logits)
    return jnp.sum(outputs * gates * omega * case['upstream']), aux

  kept, gates, selected, aux = jax.jit(route)(logits)
  probs, best = jax.jit(lambda kept, logits: (jax.nn.softmax(kept), choices.best(logits)))(kept, logits)
  case.assert_close('mask', np.asarray(np.asarray(kept) == -np.inf).astype(np.int32))
  case.assert_close('probs', probs)
  case.assert_close('argmax', np.asarray(best, np.int32))
  case.assert_close('selected', selected[:, 0])
  case.assert_close('multiplier', gates * omega)
  case.assert_close('balance_loss', aux.losses['balance'])
  grads = jax.jit(jax.grad(lambda *args: value(*args)[0], argnums=(0, 1, 2)))(logits, omega, outputs)
  for name, grad in zip(('grad_logits', 'grad_omega', 'grad_expert_out'), grads):
    case.assert_close(name, grad)
  balance = jax.jit(jax.grad(lambda s: route(s)[3].losses['balance']))
  case.assert_close('grad_logits_balance', balance(logits))


def v2(case):
  c = case.config
  names = [[f'{kind}_draws_{level}' for level in range(c['k'])] for kind in ('exp', 'uniform')]
  found = [_drawn(case, group) for group in names]
  draws = None if None in found else (jnp.stack(found[0], axis=1), jnp.stack(found[1], axis=1))
  case.option('logits_kind', dict.fromkeys((c['logits_kind'],)))

  def route(scores):
    return _one_group(grin.grin, scores, k=c['k'], epsilon=c['jitter_eps'], draws=draws)

  def value(scores):
    return jnp.sum(route(scores)[0] * case['upstream'])

  scores = jnp.asarray(case['scores'])
  gates, selected, aux = jax.jit(route)(scores)
  case.assert_close('multiplier', gates)
  case.assert_close('selected', selected)
  case.assert_close('original_gates', jax.nn.softmax(scores))
  case.assert_close('grad_scores', jax.jit(jax.grad(value))(scores))
  # What the reference returns for a balance loss makes ours.
  balance = losses.balance(case['original_gates'][None], selected[None], jnp.ones((1, len(scores)), bool))
  np.testing.assert_allclose(aux.losses['balance'], balance, rtol=1e-5)


def switch_gate(case):
  c, logits = case.config, jnp.asarray(case['logits'])
  draws = _drawn(case, ['uniform_draws'])
  factor = 1.0 if draws is None else 1 - c['jitter_eps'] + 2 * c['jitter_eps'] * draws[0]

  def value(logits):
    gates, selected, aux = _one_group(lambda s, *args, **kwargs: switch.switch(s * factor, *args), logits)
    return jnp.sum(gates * case['upstream']), (gates, selected, aux)

  (_, (gates, selected, aux)), grad = jax.jit(jax.value_and_grad(value, has_aux=True))(logits)
  case.assert_close('selected', selected[:, 0])
  case.assert_close('multiplier', gates)
  case.assert_close('balance_loss', aux.losses['balance'])
  case.assert_close('grad_logits', grad)


def _drawn(case, names):
  """The arrays `names` as the reference drew them, or None in evaluation, which draws nothing."""
  if not case.option('training', {True: True, False: False}):
    assert not [name for name in names if name in case], f'{case}: draws in evaluation'
    return None
  return tuple(jnp.asarray(case[name]) for name in names)


def _one_group(route, logits, **fields):
  """(gates f32[T,k], experts i32[T,k], Aux) of logits [T,E] as one dropless group, order kept."""
  size = len(logits)
  a, aux = route(logits[None], jnp.ones((1, size), bool), size, **fields)
  columns = lambda x: x.reshape(-1, size).T
  return columns(a.weight), columns(a.expert), aux
