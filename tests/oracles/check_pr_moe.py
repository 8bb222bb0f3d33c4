"""Checks of PR-MoE: DeepSpeed's gates with recorded draws, its layers, and the loss of its students."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe import targets
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.routers import pr_moe


def top1_gate(case):
  c = case.config
  case.option('noisy_gate_policy', {None: None, 'RSample': None, 'Jitter': None})
  # Jitter is of the gate's input, and the gate of the bare function has none: logits are its input.
  gumbel = case['gumbel'] if 'gumbel' in case else None
  # Without random token selection the reference keeps tokens in no order that it defines: ours is theirs.
  uniform = case['uniform'] if 'uniform' in case and c.get('use_rts', True) else None
  _gate(case, 1, 'random', gumbel=gumbel, uniform=uniform)


def top2_gate(case):
  gumbel = case['gumbel'] if case.option('second_expert_sampling', {True: 1, False: 0}, True) else None
  _gate(case, 2, 'choice', gumbel=gumbel)


def topk_gate(case):
  keep = case.option('drop_policy', dict(probs='probs', position='position'), 'probs')
  _gate(case, case.config['k'], keep, of_topk=True)


def _gate(case, k, keep, gumbel=None, uniform=None, of_topk=False):
  used = case['used_token'] > 0 if 'used_token' in case else np.ones(case.config['T'], bool)
  group = lambda x: None if x is None else jnp.asarray(x)[None]
  capacity = case['dispatch'].shape[2]                               # without drops the greatest load

  def run(logits):
    a, aux = pr_moe.pr_moe(logits[None], used[None], capacity, k, keep=keep, gumbel=group(gumbel),
                           uniform=group(uniform))
    dispatch, combine = (x[0] for x in assignment.masks(a))
    places, balance = dispatch, _balance(logits, aux, used)
    if of_topk:
      # That function may be called with one or two choices, for which the layer has the others: it counts
      # all of them in its loss, and divides a single gate by itself, too.
      balance = balance if k > 2 else _of_load(logits, aux) / (k * len(used))
      combine = pr_moe.survivors(a).masks()[1][0] if k == 1 else combine
      combine, places = _in_token_order(combine, dispatch)
    return jnp.stack([balance, jnp.sum(combine * case['cotangent'])]), (balance, combine, places, aux.load)

  logits = jnp.asarray(case['logits'])
  grads, (balance, combine, places, load) = jax.jit(jax.jacrev(run, has_aux=True))(logits)
  case.assert_close('aux', balance[None])
  case.assert_close('combine', combine)
  case.assert_close('dispatch', places.astype(np.int8))
  case.assert_close('exp_counts', load.astype(jnp.int32))
  case.assert_close('grad_aux', grads[0])
  case.assert_close('grad_combine', grads[1])


def _balance(logits, aux, used):
  """The reference's loss f32[] of logits f32[T,E]: what is not used chooses nothing, but counts as tokens."""
  if used.all():
    return aux.losses['balance']
  return _of_load(logits, aux) / len(used)


def _of_load(logits, aux):
  """E sum_e P_e n_e of logits f32[T,E], n the choices of each expert."""
  return logits.shape[-1] * jnp.sum(jax.nn.softmax(logits).mean(0) * aux.load)


def _in_token_order(combine, dispatch):
  """Both [T,E,C] with places as the gate for any k has them: first choices do not come first, as with us.

  Places mean nothing else.
  """
  there = dispatch.any(-1)                                           # [T, E]
  place = jnp.cumsum(there, axis=0) - 1
  places = there[..., None] & (place[..., None] == jnp.arange(dispatch.shape[-1]))
  return combine.sum(-1, keepdims=True) * places, places


class Given(nnx.Module):
  """Our router with the reference's draws: its jitter of the gate's input, and what the choice draws."""

  def __init__(self, router, case):
    c = case.config
    self.router = router
    self.num_experts = router.num_experts
    policy = case.option('noisy_gate_policy', {None: None, 'Jitter': 'jitter', 'RSample': 'gumbel'})
    self.jitter = nnx.data(jnp.asarray(case['jitter']) if policy == 'jitter' and c['train'] else None)
    keep = {1: 'random', 2: 'choice'}.get(c['k'], case.option('drop_policy', dict.fromkeys(
        ('probs', 'position'), 'probs') | dict(position='position'), 'probs'))
    draws = {name: jnp.asarray(case[name])[None] for name in ('gumbel', 'uniform') if name in case}
    self.decide = functools.partial(pr_moe.pr_moe, k=c['k'], keep=keep, **draws)
    factor = c['capacity_factor'] if c['train'] else c.get('eval_capacity_factor', c['capacity_factor'])
    tokens = c['B'] * c['T']
    slots = np.ceil(np.float32(tokens / c['E']) * np.float32(factor * c['k']))
    self.capacity = max(int(slots), c['min_capacity']) if c.get('drop_tokens', True) else tokens

  def __call__(self, x, ctx, carry):
    x = x if self.jitter is None else x * self.jitter
    logits = self.router.logits(x, ctx)
    a, aux = self.decide(logits, ctx.mask, self.capacity)
    self.seen = nnx.data((logits[0], aux))
    return contract.Routed(a, aux, carry)


def plain_layer(case):
  _layer(case)


def residual_layer(case):
  _layer(case)


def _layer(case):
  layer = _built(case)
  x = jnp.asarray(case['x'])
  used = np.ones(x[..., 0].size, bool) if 'used_token' not in case else case['used_token'].ravel() > 0
  ctx = models_hf.context(np.zeros(x.shape[:2], np.int32), used.reshape(x.shape[:2]))

  def run(layer, x):
    inner = getattr(layer, 'inner', layer)
    inner.router = Given(inner.router, case)
    y, _, _ = layer(x, ctx, {})
    logits, aux = inner.router.seen
    balance = _balance(logits, aux, used)
    return jnp.sum(y * case['cotangent']) + balance, (y, balance, aux)

  graph, state = nnx.split(layer)
  both = jax.grad(lambda state, x: run(nnx.merge(graph, state), x), argnums=(0, 1), has_aux=True)
  grads, (y, balance, aux) = jax.jit(both)(state, x)
  case.assert_close('y', y)
  case.assert_close('aux', balance[None])
  case.assert_close('exp_counts', aux.load.astype(jnp.int32))
  case.assert_close('grad_x', grads[1])
  for name, (gradient, turn) in _named(nnx.merge(graph, grads[0])).items():
    case.assert_close(f'grad_{name}', turn(gradient[...]))


def _built(case):
  """Our layer with the weights of `case`."""
  c, activation = case.config, case.option('activation', activations.TORCH)
  experts = dict(name='mlp', d_ff=c['H'], activation=activation, use_bias=True)
  routed = dict(name='moe', executor='einsum', group_size=c['B'] * c['T'], experts=experts,
                router=dict(name='pr_moe', num_experts=c['E'], k=c['k']))
  residual = dict(name='pr_moe', inner=routed, d_ff=c['H'], activation=activation, use_bias=True)
  made = residual if case.option('use_residual', {True: True, False: False}) else routed
  layer = lookup.recipe('layer', made)(c['D'], rngs=nnx.Rngs(0))
  for name, (variable, turn) in _named(layer).items():
    value = turn(case[name])
    assert variable.shape == value.shape, name
    variable[...] = jnp.asarray(value)
  return layer


def _named(layer):
  """Dict torch's name -> (Variable of our layer, what makes their array ours and ours theirs)."""
  turn, same = lambda w: w.swapaxes(-1, -2), lambda b: b
  both = lambda prefix, bank: {
      f'{prefix}.fc1.weight': (bank.wi, turn), f'{prefix}.fc1.bias': (bank.bi, same),
      f'{prefix}.fc2.weight': (bank.wo, turn), f'{prefix}.fc2.bias': (bank.bo, same)}
  inner = getattr(layer, 'inner', layer)
  found = {'gate': (inner.router.w, turn)} | both('expert', inner.experts)
  if inner is not layer:
    found |= both('mlp', layer.mlp) | {'coef_w': (layer.w, turn), 'coef_b': (layer.b, same)}
  return found


def mos_loss(case):
  c = case.config
  target = lookup.recipe('target', dict(name='pr_moe', inner=dict(name='ids'), temperature=c['temperature'],
                                        weight=c['beta']))()
  rows, length = case['student'].shape[:2]
  batch = dict(decoder_target_tokens=jnp.zeros((rows, length), jnp.int32), other_outputs=case['teacher'],
               decoder_loss_weights=jnp.ones((rows, length), jnp.int32))

  def loss(student):
    total, values = target.loss(student, batch, targets.counts(target, None, batch))
    # Over the configured length, also where a curriculum makes rows shorter; padding is not left out.
    return (total - values['loss/ce']) * length / c['seq_length']

  value, grad = jax.value_and_grad(loss)(jnp.asarray(case['student']))
  case.assert_close('loss', value[None])
  case.assert_close('grad_student', grad)
