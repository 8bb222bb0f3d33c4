"""Checks of AdvMoE: routed convolutions, residual blocks, the router's network, attacks, a training step."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.core.execute import einsum
from stmoe.experts import channels
from stmoe.models import resnet
from stmoe.parts import batch_norm
from stmoe.routers import adv_moe
from stmoe.targets import adversarial


def _last(x):
  """Images [...,C,H,W] of the reference as ours, [...,H,W,C]."""
  return jnp.moveaxis(jnp.asarray(x), -3, -1)


def _first(x):
  return np.moveaxis(np.asarray(x), -1, -3)


def _kernels(w, num_experts):
  """[E F,C,k,k] of the reference as ours, [E,k,k,C,F]; without experts [k,k,C,F]."""
  w = jnp.asarray(w)
  return (w.reshape(num_experts, -1, *w.shape[1:]).transpose(0, 3, 4, 2, 1) if num_experts
          else w.transpose(2, 3, 1, 0))


def _pathway(scores):
  a, _ = adv_moe.adv_moe(scores[None], jnp.ones((1, len(scores)), bool))
  return resnet.Pathway(a, einsum.execute)


def moe_conv(case):
  c = case.config
  # Ours pads by half a kernel: with less padding the reference has our inner pixels.
  margin = (c['kernel'] - 1) // 2 - c['padding']
  assert margin == 0 or margin > 0 and c['stride'] == 1
  side = case['out'].shape[-1] + 2 * margin
  inner = np.s_[..., margin:side - margin, margin:side - margin]

  def run(x, w, scores):
    bank = channels.Channels(c['H'] ** 2 * c['Cin'], num_experts=c['E'], side=c['H'], width=c['Cout'],
                             size=c['kernel'], stride=c['stride'], rngs=nnx.Rngs(0))
    bank.w[...] = _kernels(w, c['E'])
    a, execute = _pathway(scores)
    return _unflat(execute(_last(x).reshape(1, c['B'], -1), a, bank)[0], side)[inner]
  y, back = jax.vjp(jax.jit(run), *(jnp.asarray(case[name]) for name in ('x', 'weight', 'scores')))
  case.assert_close('out', y)
  case.assert_close('choice', _pathway(jnp.asarray(case['scores'])).a.expert[0])
  for name, gradient in zip(('grad_x', 'grad_weight', 'grad_scores'), back(jnp.asarray(case['upstream']))):
    case.assert_close(name, gradient)


def _unflat(rows, side):
  return jnp.moveaxis(rows.reshape(len(rows), side, side, -1), -1, 1)


def residual_block(case):
  c = case.config
  case.option('batch_norm', {'shared by the experts, eps 1e-5, momentum 0.1': True})
  windows = resnet.BLOCKS[c['block']](c['planes'], c['stride'])
  block = resnet.Block(c['H'], c['Cin'], windows, num_experts=c['E'], rngs=nnx.Rngs(0))
  _fill(block, _block(block, '', c['E']), case.group('w.'), case.group('b.'), c['E'])

  def run(x, scores):
    y, seen = block(_last(x), _pathway(scores), c['train'], jnp.ones(len(x), bool))
    return jnp.moveaxis(y, -1, 1), seen
  y, back, seen = jax.vjp(jax.jit(run), jnp.asarray(case['x']), jnp.asarray(case['scores']), has_aux=True)
  case.assert_close('out', y)
  for name, gradient in zip(('grad_x', 'grad_scores'), back(jnp.asarray(case['upstream']))):
    case.assert_close(name, gradient)
  _compare_after(case, block, seen, _block(block, '', c['E']))


def _compare_after(case, model, seen, parts):
  """Compares the running statistics after a pass in which the norms of our `model` saw `seen`."""
  if case.config['train']:
    modules.commit(model, _reported(seen))
  for name in case.names('after.'):
    norm, statistic = name.removeprefix('after.').rsplit('.running_', 1)
    case.assert_close(name, _running(parts[norm], statistic)[...])


def router(case):
  c = case.config
  widths, depths = [c['width'] * 2 ** i for i in range(3)], c['blocks']
  network = resnet.Network(c['H'], 3, c['width'], resnet.stages('basic', widths, depths), shortcut='pad',
                           rngs=nnx.Rngs(0))
  head = adv_moe.AdvMoE(network.width, num_experts=c['E'], rngs=nnx.Rngs(0))
  _fill(network, _network(network, depths, 0) | dict(fc=head), case.group('w.'), case.group('b.'), 0)

  def scores(x):
    features, seen = network(_last(x), None, c['train'], jnp.ones(len(x), bool))
    return head.logits(features[None], None)[0], seen
  y, back, seen = jax.vjp(jax.jit(scores), jnp.asarray(case['x']), has_aux=True)
  case.assert_close('scores', y), case.assert_close('grad_x', back(jnp.asarray(case['upstream']))[0])
  _compare_after(case, network, seen, _network(network, depths, 0))


def _block(block, prefix, num_experts):
  """Dict name of the reference -> our part that has its arrays."""
  parts = {}
  for i, (convolution, norm) in enumerate(zip(block.convs, block.norms), 1):
    parts[f'{prefix}conv{i}'] = convolution.experts if num_experts else convolution.dense
    parts[f'{prefix}bn{i}'] = norm
  if block.shortcut is not None:
    parts |= {f'{prefix}shortcut.0': block.shortcut.dense, f'{prefix}shortcut.1': block.shortcut_norm}
  return parts


def _network(network, depths, num_experts):
  parts, blocks = {'conv1': network.stem.dense, 'bn1': network.stem_norm}, iter(network.blocks)
  for stage, depth in enumerate(depths, 1):
    for i in range(depth):
      parts |= _block(next(blocks), f'layer{stage}.{i}.', num_experts)
  return parts


def _entries(parts, names, num_experts):
  """Yields (name of the reference, Variable of ours, the function that makes ours of its array)."""
  for name in names:
    owner, kind = name.rsplit('.', 1)
    part = parts[owner]
    if isinstance(part, batch_norm.BatchNorm):
      yield name, dict(weight=part.scale, bias=part.bias)[kind], jnp.asarray
    elif isinstance(part, channels.Channels):
      yield name, part.w, lambda w: _kernels(w, num_experts)
    elif kind == 'bias':
      yield name, part.b, jnp.asarray
    else:
      yield name, part.w, lambda w: jnp.asarray(w).T if w.ndim == 2 else _kernels(w, 0)


def _fill(model, parts, weights, statistics, num_experts):
  """Gives our parts the reference's arrays."""
  for name, variable, ours in _entries(parts, weights, num_experts):
    value = ours(weights[name])
    assert variable.shape == value.shape, (name, variable.shape, value.shape)
    variable[...] = value
  for owner in {name.rsplit('.', 1)[0] for name in statistics}:
    for kind in ('mean', 'var'):
      _running(parts[owner], kind)[...] = jnp.asarray(statistics[f'{owner}.running_{kind}'])
  return model


def _reported(statistics):
  """The Aux of a step in which norms saw `statistics`."""
  return contract.Aux(losses={}, load=jnp.zeros(1), metrics={}, statistics=statistics)


def _running(part, kind):
  return dict(mean=part.mean, var=part.variance)[kind]


def _model(case):
  """(our network, its parts by the reference's names, those of its router) of a whole case."""
  c = case.config
  weights = {name: w for name, w in case.group('w.').items() if '.router.' not in name}
  names = {tuple(map(int, found.groups())) for found in
           (re.match(r'layer(\d)\.(\d+)\.conv1', name) for name in weights) if found}
  depths = [max(block for stage, block in names if stage == at) + 1 for at in range(1, 5)]
  widths = [len(weights[f'layer{at}.0.bn1.weight']) for at in range(1, 5)]
  router = case.group('r.')
  router_depth = sum(bool(re.match(r'layer1\.\d+\.conv1', name)) for name in router)
  model = resnet.ResNet(
      vocab_size=c['num_classes'], d_model=len(weights['bn1.weight']), widths=widths, depths=depths,
      image_size=c['H'], router=lookup.recipe('router', dict(name='adv_moe', num_experts=c['E'])),
      router_width=c['router_width'], router_depth=router_depth, executor='einsum', blocks={},
      rngs=nnx.Rngs(0))
  parts = _network(model.experts, depths, c['E']) | dict(linear=model.head)
  of_router = _network(model.router_network, [router_depth] * 3, 0) | dict(fc=model.router)
  own = lambda prefix: {name: a for name, a in case.group(prefix).items() if '.router.' not in name}
  _fill(model, parts, weights, own('b.'), c['E'])
  _fill(model, of_router, router, case.group('rb.'), 0)
  return model, parts, of_router


def _target(case, **fields):
  c = case.config
  return lookup.recipe('target', dict(name='adversarial', inner=dict(name='ids'), epsilon=c['epsilon'],
                                      beta=c['beta']) | fields)()


def _batch(case):
  return dict(image=_last(case['x']), labels=jnp.asarray(case['y'])[:, None],
              weights=jnp.ones((len(case['y']), 1), jnp.int32))


def pgd(case):
  c = case.config
  model, _, _ = _model(case)
  attack = case.option('joint_router_attack', {True: 'joint', False: 'model'})
  target = _target(case, attack=attack, eval_steps=c['num_steps'], eval_step_size=c['step_size'])
  batch = _batch(case)
  _attack(case, target, model, batch, 'iterates', 'attack_grad',
          lambda moved, s: target._harm(moved, s, batch) / c['B'])   # theirs is a mean over images
  case.assert_close('start_noise', case['iterates'][0] - case['x'], like='iterates')
  moved = batch | dict(image=_last(case['iterates'][-1]))
  (clean, _), (logits, _) = model(batch), model(moved)
  case.assert_close('logits_adv', logits[:, 0])
  case.assert_close('router_scores_adv', model.scores(moved))
  seen = adversarial.Attacked(clean, logits, moved['image'], model.scores(batch), model.scores(moved))
  values = target.metrics({name: float(x) for name, x in target.judge(seen, batch).items()}
                          | dict(weight=float(c['B'])))
  case.assert_close('sa', 100 * values['eval/accuracy'])
  case.assert_close('ra', 100 * values['eval/robust_accuracy'])


def _attack(case, target, model, batch, iterates, gradients, gain):
  """Our gradients at the recorded images, and the moves that recorded gradients make."""
  run = jax.jit(jax.grad(lambda images: gain(
      model(batch | dict(image=images))[0], model.scores(batch | dict(image=images)))))
  images = _last(case[iterates])
  with jax.default_matmul_precision('highest'):
    case.assert_close(gradients, _first(jnp.stack([run(image) for image in images[:-1]])))
  moved = [adversarial.pgd(batch['image'], at, lambda _, g=g: g, epsilon=target.epsilon,
                           step_size=case.config['step_size'], steps=1)
           for at, g in zip(images, _last(case[gradients]))]
  np.testing.assert_allclose(jnp.stack(moved), images[1:], atol=1e-6)


def training_step(case):
  c = case.config
  model, parts, of_router = _model(case)
  target = _target(case, alpha=c['alpha'], steps=c['num_steps'], step_size=c['step_size'])
  batch = _batch(case)
  scores = model.scores(batch, train=True)
  attack = lambda number, model: _attack(
      case, target, model, batch, f'adv_{number}', f'attack_grad_{number}', lambda moved, s: target._apart(
          moved, model(batch)[0], batch) + jnp.sum(adversarial.divergence(scores, s)))
  for number in (1, 2):
    case.assert_close(f'noise_{number}', (case[f'adv_{number}'][0] - case['x']) / 1e-3)
  # Their norms move in every pass: before the attack of the router and of the network, after it of the
  # network for both kinds of images.
  move = lambda images: model.commit(model(batch | dict(image=images), train=True)[1])
  ctx = model._context(batch, None, True, 0, None)
  modules.commit(model.router_network, _reported(model._scores(batch, ctx, True)[1]))
  move(batch['image'])
  attack(1, model)

  def expert_loss(model):
    return _loss(target, model, batch, case['adv_1'][-1])['experts']
  loss, grads = jax.jit(jax.value_and_grad(expert_loss))(model)
  case.assert_close('loss_expert', loss)
  for name, ours, want in _pairs(case, 'g.', grads, model, parts, c['E']):
    case_close(case, name, ours, want)
  move(batch['image']), move(_last(case['adv_1'][-1]))
  rate = float(re.search(r'lr ([0-9.]+) without momentum', c['optimizer'])[1])
  recorded = case.group('g.')
  for name, variable, ours in _entries(parts, recorded, c['E']):
    variable[...] -= rate * ours(recorded[name])
  attack(2, model)

  def router_loss(model):
    moved = batch | dict(image=_last(case['adv_2'][-1]))
    s, t = model.scores(batch, train=True), model.scores(moved, train=True)
    return target.route(s, t, batch) / c['B']
  loss, grads = jax.jit(jax.value_and_grad(router_loss))(model)
  case.assert_close('loss_router', loss)
  for name, ours, want in _pairs(case, 'gr.', grads, model, of_router, 0):
    case_close(case, name, ours, want)


def case_close(case, name, ours, want):
  """Compares a gradient in our form with the reference's."""
  rtol, atol = case.limits(name)
  np.testing.assert_allclose(ours, want, rtol=rtol, atol=atol, err_msg=f'{case} {name}')


def _pairs(case, prefix, grads, model, parts, num_experts):
  """Yields (name, our gradient, the reference's in our form) of all recorded gradients."""
  paths = {id(variable): path for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
  of_path = dict(nnx.to_flat_state(nnx.state(grads, nnx.Param)))
  recorded = case.group(prefix)
  for name, variable, ours in _entries(parts, recorded, num_experts):
    yield prefix + name, of_path[paths[id(variable)]][...], ours(recorded[name])


def _loss(target, model, batch, moved):
  """dict(experts): the loss of the experts at recorded images, all norms in training."""
  run = lambda images: model(batch | dict(image=images), train=True)[0]
  seen = adversarial.Attacked(run(batch['image']), run(_last(moved)), moved, None, None)
  return dict(experts=target.loss(seen, batch, target.counts(batch))[0])
