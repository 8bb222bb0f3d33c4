"""Checks of Switch-DiT: its layer, its prior, DiT's block and model, the loss of DDPM."""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import models_dit
import numpy as np

from stmoe import lookup
from stmoe.attention import attention
from stmoe.layers import dense
from stmoe.parts import block as blocks
from stmoe.parts import norm
from stmoe.parts.around import ada_ln_zero
from stmoe.parts.around import switch_dit
from stmoe.targets import ddpm as ddpm_lib


def prior_mask(case):
  for number, one in enumerate(case.config['cases']):
    mask = switch_dit.prior_mask(one['task_count'], one['unit_count'], one['beta'], one['alpha'])
    case.assert_close(f'mask_{number}', mask)


def layer(case):
  c = case.config
  made = lookup.recipe('layer', models_dit.modulation(c['E'], c['k'], c['D']))(c['D'], rngs=nnx.Rngs(0))
  models_dit.put(made, {'router.w': case['gate_w'].T, 'router.b': case['gate_b'],
                        'experts.w': case['expert_w'], 'experts.b': case['expert_b']})
  ctx = models_dit.context(jnp.ones((c['B'], c['N']), bool))

  @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
  def loss(layer, x, table):
    embedding = table[case['timesteps']][:, None]                    # [B, 1, D]
    y, _, _ = layer.chosen_by(jnp.broadcast_to(embedding, x.shape), x, ctx, {})
    probs = jax.nn.softmax(layer.router.scores(table[None])[0], axis=-1)
    of_rows = probs[case['timesteps']]
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(probs, c['k'])[1], c['E'], dtype=jnp.int8), axis=1)
    value = jnp.sum((1 + y) * case['upstream']) + jnp.sum(of_rows * case['upstream_probs'])
    return value, (1 + y, of_rows, chosen)

  (of_layer, dx, dtable), (m, probs, chosen) = jax.jit(loss)(made, case['x'], case['time_embedding_full'])
  router, experts = of_layer.router, of_layer.experts
  for name, value in dict(modulation=m, probs=probs, indicator=chosen, grad_x=dx, grad_gate_b=router.b,
                          grad_time_embedding_full=dtable, grad_gate_w=router.w[...].T,
                          grad_expert_w=experts.w, grad_expert_b=experts.b).items():
    case.assert_close(name, value[...])


def diffusion_prior(case):
  c = case.config
  units, share = c['L'] * c['E'], c['k'] / c['E']
  assert c['epsilon'] == switch_dit.EPSILON
  mask = jnp.asarray(switch_dit.prior_mask(c['T'], units, share, c['alpha']))
  case.assert_close('mask', mask)
  gates, priors, match = case['perm_gate'], case['perm_prior'], case['match']

  @functools.partial(jax.grad, has_aux=True)
  def loss(logits):
    probs = jax.nn.softmax(logits, axis=-1)                          # [T, L, E]
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(probs, c['k'])[1], c['E']), axis=2).reshape(c['T'], units)
    rows = probs.reshape(c['T'], units)[case['timesteps']] / c['L']
    value = jnp.mean(switch_dit.diffusion_prior(rows, mask[case['timesteps']], match, gates, priors))
    return value, (value, chosen)

  grad, (value, chosen) = jax.jit(loss)(jnp.asarray(case['logits']))
  case.assert_close('loss', value), case.assert_close('grad_logits', grad)
  left, right = np.asarray(chosen)[:, gates], np.asarray(mask)[:, priors]
  cost = lambda match: np.abs(left - right[:, match]).sum()
  assert cost(match) == cost(np.asarray(switch_dit.matched(left, right)))
  case.assert_close('match_cost', np.float32(cost(match)).reshape(case['match_cost'].shape))


def dit_block(case):
  c = case.config
  made = _block(case)
  ctx = models_dit.context(jnp.ones((c['B'], c['N']), bool))
  m = jnp.asarray(case['modulation']) if 'modulation' in case else None

  @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
  def loss(x, condition, m):
    given = ctx.replace(given={ada_ln_zero.CONDITION: condition[:, None]})
    run = lambda x: made(x, given, {})
    y, *_ = run(x) if m is None else switch_dit.modulated(run, x, m)
    return jnp.sum(y * case['upstream']), y

  (dx, dc, dm), y = jax.jit(loss)(jnp.asarray(case['x']), jnp.asarray(case['c']), m)
  case.assert_close('out', y), case.assert_close('grad_x', dx), case.assert_close('grad_c', dc)
  if 'grad_modulation' in case:
    case.assert_close('grad_modulation', dm)


def _block(case):
  """The block of a configuration with the case's numbers in it."""
  c = case.config
  activation = case.option('activation', {'gelu tanh': 'gelu'})
  block = functools.partial(
      blocks.Block, norm=functools.partial(norm.Standardized, epsilon=c['layer_norm_eps']),
      attention=functools.partial(attention.Attention, num_heads=c['heads'], head_dim=c['D'] // c['heads'],
                                  use_bias=True),
      layer=functools.partial(dense.Dense, d_ff=round(c['D'] * c['mlp_ratio']), activation=activation,
                              use_bias=True))
  made = ada_ln_zero.AdaLnZero(c['D'], block=block, rngs=nnx.Rngs(0))
  names = {'attn.qkv.weight': 'qkv_w', 'attn.qkv.bias': 'qkv_b', 'attn.proj.weight': 'proj_w',
           'attn.proj.bias': 'proj_b', 'mlp.fc1.weight': 'fc1_w', 'mlp.fc1.bias': 'fc1_b',
           'mlp.fc2.weight': 'fc2_w', 'mlp.fc2.bias': 'fc2_b', 'adaLN_modulation.1.weight': 'ada_w',
           'adaLN_modulation.1.bias': 'ada_b'}
  values = {}
  for theirs, name in names.items():
    at = models_dit.paths(f'blocks.0.{theirs}', lambda number: '')
    values |= dict(zip(at, models_dit.ours(f'blocks.0.{theirs}', case[name])))
  models_dit.put(made, values)
  return made


def model(case):
  c = case.config
  case.option('timestep_frequencies', {256: 256}), case.option('max_period', {10000: 10000})
  around = dict(name='switch_dit', layer=models_dit.modulation(c['E'], c['k'], c['D']))
  blocks = dict(m=dict(layer='dense', d_ff=round(c['D'] * c['mlp_ratio']), activation='gelu', use_bias=True,
                       around=around))
  variance = case.option('learn_sigma', {True: True, False: False})
  made = models_dit.model(c, blocks, (('m', c['depth']),), variance)
  values = {}
  for name, value in case.group('w.').items():
    values |= dict(zip(_paths(name), models_dit.ours(name, value)))
  # Without class dropout the reference has no row for images without a class. Labels are those after it.
  missing = int(not c['class_dropout_prob'])
  values['classes.table'] = np.pad(values['classes.table'], ((0, missing), (0, 0)))
  models_dit.put(made, values)
  grads, (out, aux, places) = _trained(case, made)
  case.assert_close('pos_embed', places[None])
  case.assert_close('out', models_dit.channels_first(out))
  if 'aux' in case:                                                  # of training
    case.assert_close('aux', aux)
  for name in case.names('g.'):
    plain = name.removeprefix('g.')
    at = [models_dit.reach(grads, path)[...] for path in _paths(plain)]
    value = models_dit.theirs(plain, at, case[f'w.{plain}'])
    case.assert_close(name, value[:-1] if missing and plain.startswith('y_embedder') else value)


def _paths(name):
  """The paths of ours that hold the reference's array `name`."""
  at = lambda number: f'encoder.segments.0.{number}.blocks.0.'
  if not name.startswith('routers.'):
    return models_dit.paths(name, lambda number: f'{at(number)}block.')
  _, number, end = name.split('.', 2)
  end = {'f_gate.1.weight': 'router.w', 'f_gate.1.bias': 'router.b'}.get(end, end)
  return [f'{at(number)}modulation.{end}']


def _trained(case, made):
  """(gradients, (outputs, prior loss, places)) of sum(outputs * upstream) + prior loss."""
  c = case.config
  image, upstream = (models_dit.channels_last(case[name]) for name in (
      'x', 'upstream' if 'upstream' in case else 'out'))
  batch = dict(image=image, weights=jnp.ones((c['B'], 1), jnp.int32), times=jnp.arange(c['T'], dtype=float))
  label = jnp.where(case['y'] == c['num_classes'], -1, case['y'])
  batch |= {'given/time': jnp.asarray(case['t'], jnp.float32), 'given/label': label}
  permuted = iter([case[name] for name in ('perm_gate', 'perm_prior') if name in case])
  drawn, jax.random.permutation = jax.random.permutation, lambda key, units: jnp.asarray(next(permuted))
  try:
    def loss(model):
      out, aux = model(batch, train=case.option('train', {True: True, False: False}))
      prior = [one.losses['diffusion_prior'] for one in aux.values() if 'diffusion_prior' in one.losses]
      value = sum(prior, jnp.zeros(()))
      return jnp.sum(out * upstream) + value, (out, value)
    grads, (out, value) = jax.jit(jax.grad(loss, has_aux=True))(made)
  finally:
    jax.random.permutation = drawn
  return grads, (out, value, models_dit.places(c))


def _ddpm(case):
  """Our target, whose weight of errors has 5 as the largest ratio, with the ratio of the case."""
  c = case.config
  largest = re.fullmatch(r'min_snr_([0-9.]+)', c['loss_weight'])
  target = ddpm_lib.Ddpm(
      schedule=c['schedule'], steps=c['steps'],
      variance=case.option('learn_sigma', {True: True, False: False}),
      weight='min_snr' if largest else case.option('loss_weight', {'constant': 'constant'}))
  if largest and float(largest[1]) != 5:
    ratio = target.process.abar / (1 - target.process.abar)
    target.factor = np.minimum(ratio, float(largest[1])) / ratio
  return target


def ddpm_loss(case):
  c, target = case.config, _ddpm(case)
  last = models_dit.channels_last
  batch = dict(image=last(case['x0']), noise=last(case['noise']), weights=jnp.ones((c['B'], 1), jnp.int32))
  batch['given/time'] = (jnp.asarray(case['t']) + 0.5) / c['steps']
  np.testing.assert_array_equal(target.level(batch), case['t'])
  count = target.counts(batch)

  @functools.partial(jax.grad, has_aux=True)
  def loss(outputs):
    value = target.loss(outputs, batch, count)[0]
    return value, (*target.each(outputs, batch), value)

  grad, (mse, bits, value) = jax.jit(loss)(last(case['model_output']))
  case.assert_close('x_t', models_dit.channels_first(target.posed(batch)['image']))
  case.assert_close('mse', mse), case.assert_close('loss', value)
  if 'vb' in case:                                                   # of learned variances
    case.assert_close('vb', bits)
  case.assert_close('grad_model_output', models_dit.channels_first(grad))
  at = [level for level in (0, 1, 10, 100, 500, 900, 999) if level < c['steps']]
  case.assert_close('alpha_bar', target.process.abar[at].astype(np.float32))
