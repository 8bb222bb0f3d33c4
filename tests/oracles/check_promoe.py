"""Checks of ProMoE: its layer with token choice and with expert choice, and a training step of its DiT."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import models_dit
import numpy as np

from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import losses
from stmoe.routers import promoe
from stmoe.targets import flow

BOTH = {True: True, False: False}
# Arrays of the bank and of the shared expert: theirs -> ours; theirs are [out,in].
ARRAYS = {'w_up': 'experts.wi', 'b_up': 'experts.bi', 'w_down': 'experts.wo', 'b_down': 'experts.bo'}
SHARED = {'ws_up': 'shared.wi', 'bs_up': 'shared.bi', 'ws_down': 'shared.wo', 'bs_down': 'shared.bo'}


def token_choice(case):
  c = case.config
  means = case.option('use_top_k_for_routing_contrastive', {True: 'all', False: 'first'}, True)
  made, prefix = _layer(case, c['B'] * c['N'], dict(name='promoe', k=c['top_k'], means=means))
  (of_layer, dx), (y, aux, a) = _run(case, made, prefix, 1.0, c.get('load_balance_loss_coef', 0))
  weights, chosen = _dense(a, c, models_dit.reach(made, f'{prefix}router').num_experts)
  expected = np.zeros_like(weights)
  for slot in range(case['indices'].shape[-1]):
    at = *np.indices((c['B'], c['N'])), case['indices'][..., slot]
    np.add.at(expected, at, case['weights'][..., slot])
  np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
  _compare(case, prefix, of_layer, dx, y, aux)


def expert_choice(case):
  c = case.config
  case.option('use_top_k_for_routing_contrastive', BOTH, True)       # is of token choice
  made, prefix = _layer(case, None, dict(name='promoe_expert_choice', k=float(c['top_k'])))
  classed = _labels(case) >= 0
  (of_layer, dx), (y, aux, a) = _run(case, made, prefix, whole=c['B'] / max(classed.sum(), 1))
  weights, chosen = _dense(a, c, models_dit.reach(made, f'{prefix}router').num_experts)
  experts = c['num_routed_experts']
  taken = case['dispatch'].sum(2)                                    # [B_cond, E, N]
  gates = np.einsum('bec,becn->ben', case['gates'], case['dispatch'])
  np.testing.assert_array_equal(chosen[classed][..., :experts].swapaxes(1, 2), taken > 0)
  np.testing.assert_allclose(weights[classed][..., :experts].swapaxes(1, 2), gates, rtol=1e-4,
                             atol=1e-5 * np.abs(gates).max())
  _compare(case, prefix, of_layer, dx, y, aux)


def _labels(case):
  """i32[B] with -1 for the reference's null class, where an expert has it."""
  null = (case['labels'] == case.config['null_class']) & case.config['use_uncond_expert']
  return np.where(null, -1, case['labels']).astype(np.int32)


def _layer(case, group_size, router):
  """(the layer of a configuration with the case's numbers in it, the path of its sparse layer)."""
  c = case.config
  activation = case.option('activation', {'gelu tanh': 'gelu'})
  extra = case.option('use_uncond_expert', BOTH)
  router |= dict(num_experts=c['num_routed_experts'] + extra, unconditional=extra,
                 temperature=c['routing_contrastive_temperature'],
                 gate=case.option('router_weight_mode', {n: n for n in ('identity', 'sigmoid', 'softmax')}))
  inner = dict(name='moe', executor='einsum', group_size=group_size, router=router,
               experts=dict(name='mlp', d_ff=c['moe_intermediate_size'], activation=activation,
                            use_bias=True))
  layer, prefix, shared = inner, '', case.option('use_shared_expert', BOTH)
  if shared:
    prefix, layer = 'inner.', dict(name='shared', d_ff=c['shared_expert_intermediate_size'], gated=False,
                                   activation=activation, use_bias=True, inner=inner)
  made = lookup.recipe('layer', layer)(c['hidden_size'], rngs=nnx.Rngs(0))
  values = {f'{prefix}router.prototypes': case['prototypes']}
  for theirs, ours in ARRAYS.items():
    values[prefix + ours] = case[theirs].swapaxes(1, 2) if theirs[0] == 'w' else case[theirs]
  if shared:
    values |= {ours: case[theirs].T for theirs, ours in SHARED.items()}
  models_dit.put(made, values)
  return made, prefix


def _run(case, made, prefix, whole, coefficient=0.0):
  """((gradients of layer and x), (y, auxiliary loss, Assignment)).

  Args:
    whole:       factor that makes our contrastive loss the reference's.
    coefficient: of the balance loss; the reference has none of expert choice.
  """
  c = case.config
  label = jnp.asarray(_labels(case))[:, None]
  ctx = models_dit.context(jnp.ones((c['B'], c['N']), bool)).replace(given=dict(label=label))
  train, lam = case.option('train', BOTH), c['routing_contrastive_lam']
  groups = (c['B'], c['N']) if case.option('seq_aux', BOTH, False) else (1, c['B'] * c['N'])

  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def loss(layer, x):
    y, aux, _ = layer(x, ctx, {})
    sparse = models_dit.reach(layer, prefix[:-1]) if prefix else layer
    value = lam * whole * aux.losses['contrastive']
    if coefficient:
      classed = jnp.broadcast_to(label >= 0, x.shape[:2]).reshape(groups)
      value += coefficient * _balance(sparse.router, x.reshape(*groups, -1), classed)
    size = sparse.group_size or c['N']
    routed = sparse.router(x.reshape(-1, size, x.shape[-1]), ctx.group(c['B'] * c['N'] // size, size), {})
    value = value if train else jnp.zeros(())                        # evaluation has no such loss there
    return jnp.sum(y * case['upstream']) + value, (y, value, routed.assignment)

  return jax.jit(loss)(made, jnp.asarray(case['x']))


def _balance(router, x, classed):
  """E sum f P of tokens x [G,S,D] with a class: P is of the gates, and ours would be of the cosines."""
  scores = promoe.cosines(x, router.prototypes[...])                 # [G, S, P]
  gates = promoe.GATES[router.gate](scores)
  probs = gates if router.gate == 'softmax' else jax.nn.softmax(gates, axis=-1)
  return losses.balance(probs, choices.top(scores, router.k), classed) / router.k


def _dense(a, c, experts):
  """(weights f32[B,N,E], chosen bool[B,N,E]) of an Assignment."""
  dispatch, combine = assignment.masks(a)
  pair = combine, dispatch.astype(np.float32)
  return (np.asarray(m.sum(-1)).reshape(c['B'], c['N'], experts) for m in pair)


def _compare(case, prefix, of_layer, dx, y, aux):
  case.assert_close('out', y), case.assert_close('grad_x', dx), case.assert_close('aux', aux)
  at = lambda path: np.asarray(models_dit.reach(of_layer, prefix + path)[...])
  case.assert_close('grad_prototypes', at('router.prototypes'))
  case.assert_close('grad_w_up', at('experts.wi').swapaxes(1, 2))


def model_flow_loss(case):
  c = case.config
  case.option('interleave', {'odd blocks are sparse': True})
  router = dict(name='promoe', num_experts=c['E'] + 1, k=c['k'], temperature=c['tau'])
  images = c['B'] * (c['size'] // c['patch']) ** 2
  inner = dict(name='moe', executor='einsum', group_size=images, router=router,
               experts=dict(name='mlp', d_ff=c['F'], activation='gelu', use_bias=True))
  wide = round(c['D'] * c['mlp_ratio'])
  blocks = dict(d=dict(layer='dense', d_ff=wide, activation='gelu', use_bias=True),
                m=dict(layer='shared', d_ff=c['F'], gated=False, activation='gelu', use_bias=True,
                       inner=inner))
  layers = (('dm', c['depth'] // 2), *((('d', 1),) if c['depth'] % 2 else ()))
  made = models_dit.model(c, blocks, layers)
  models_dit.put(made, _weights(case, made))
  case.assert_close('pos_embed', models_dit.places(c)[None])
  grads, (out, error) = _trained(case, made)
  case.assert_close('out', models_dit.channels_first(out)), case.assert_close('mse', error)
  for name in case.names('g.'):
    plain = name.removeprefix('g.')
    at = [np.asarray(models_dit.reach(grads, path)[...]) for path in _paths(plain)]
    case.assert_close(name, models_dit.theirs(plain, at, case[f'w.{plain}']))


def _paths(name):
  """The paths of ours that hold the reference's array `name`, of a bank the bank."""
  at = lambda number: f'encoder.segments.0.{number // 2}.blocks.{number % 2}.'
  module, _, kind = name.rpartition('.')
  if not name.startswith('blocks.') or '.mlp.' not in name or '.fc' in name:
    return models_dit.paths(name, at)
  below = f'{at(int(name.split(".")[1]))}block.layer.'
  if kind == 'cluster_centers':
    return [f'{below}inner.router.prototypes']
  letter = ('w' if kind == 'weight' else 'b') + ('i' if module.endswith('up_proj') else 'o')
  return [f'{below}shared.{letter}' if 'shared_expert' in name else f'{below}inner.experts.{letter}']


def _weights(case, made):
  """dict path -> array of all parameters; experts are put side by side."""
  values, banks = {}, {}
  for name, value in case.group('w.').items():
    if name.startswith('y_embedder'):
      table = np.zeros((case.config['num_classes'] + 1, value.shape[1]), np.float32)
      table[case['label_ids']] = value
      values['classes.table'] = table
    elif '.experts.' in name:
      number = int(name.split('.experts.')[1].split('.')[0])
      banks.setdefault(_paths(name)[0], {})[number] = value.T
    elif name.endswith('cluster_centers'):
      values[_paths(name)[0]] = value
    else:
      values |= dict(zip(_paths(name), models_dit.ours(name, value)))
  return values | {path: np.stack([bank[i] for i in range(len(bank))]) for path, bank in banks.items()}


def _trained(case, made):
  """(gradients, (outputs, error)) of the error plus the contrastive losses of all sparse blocks."""
  c = case.config
  target, last = flow.Flow(), models_dit.channels_last
  label = np.where(case['drop'] > 0, -1, case['y']).astype(np.int32)
  batch = dict(image=last(case['z']), noise=last(case['noise']), weights=jnp.ones((c['B'], 1), jnp.int32))
  batch |= {'given/time': jnp.asarray(case['sigma']), 'given/label': jnp.asarray(label)}

  @functools.partial(jax.grad, has_aux=True)
  def loss(model):
    out, aux = model(target.posed(batch), train=True)
    error = target.loss(out, batch, target.counts(batch))[0]
    routing = sum(one.losses['contrastive'] for one in aux.values())
    return error + c['lambda'] * routing, (out, error)
  return jax.jit(loss)(made)
