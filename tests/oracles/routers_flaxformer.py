"""flaxformer's routers and MoeLayer in our terms; what it does with padding is translated here.

`route(logits, mask, capacity) -> (Assignment, Aux)` is the public function under test.
"""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.experts import glu
from stmoe.experts import mlp
from stmoe.layers import moe
from stmoe.routers import st_moe
from stmoe.routers import switch

# Raw gates, every choice sent, f counts any of the k choices.
RAW = dict(normalize_gates=False, second_policy='all', balance_choices='any')


def tokens_choose(k, batch_priority):
  """Returns (route, router class's fields): our function and our configuration of the reference's router."""
  if k == 1 and not batch_priority:
    return switch.switch, dict(name='switch', jitter=0.0)
  fields = dict(RAW, k=k, batch_priority=batch_priority)
  return functools.partial(st_moe.st_moe, **fields), dict(fields, name='st_moe')


def token_route(case):
  """Returns (route, k) of a case of single routers in which tokens choose."""
  c = case.config
  k, batch_priority = c.get('num_selected_experts', 1), c.get('batch_prioritized_routing', False)
  return tokens_choose(k, batch_priority)[0], k


def mask_of(case):
  """bool[G,S]: flaxformer counts padding as real unless ignore_padding_tokens."""
  return case['padding_mask'] > 0 if 'padding_mask' in case else np.ones(case['token_inputs'].shape[:2], bool)


def reference_losses(logits, mask, k, padding_chooses=False):
  """(auxiliary_loss, router_z_loss): f counts any of k choices; padding is zeroed, means divide by S.

  Where padding chooses it counts in f, but its probabilities are 0.
  """
  probs = jax.nn.softmax(logits, axis=-1)
  choice = choices.choose(probs, max(k, 1))
  if padding_chooses:
    share = 1.0
    balance = losses.balance_of_groups(probs * mask[..., None], choice, jnp.ones_like(mask))
  else:
    share = jnp.mean(mask, axis=1)
    balance = losses.balance_of_groups(probs, choice, mask)
  # Padding logits are multiplied by 0, so that each padding token adds (ln E)^2 to the z-loss.
  z = losses.z(logits, mask, mask.size) + (1 - jnp.mean(mask)) * jnp.log(logits.shape[-1]) ** 2
  return jnp.mean(balance * share ** 2), z


def compare(case, f, grads):
  """Runs f(logits) -> (scalars, arrays) once; compares arrays by name and gradients of the scalars.

  Args:
    grads: the scalars that have a grad_<name>_wrt_router_kernel.
  Returns:
    (scalars, arrays).
  """
  def g(w):
    logits = jnp.einsum('gsd,de->gse', case['token_inputs'], w, precision='highest')
    scalars, arrays = f(logits)
    arrays.update(router_logits=logits, router_probs=jax.nn.softmax(logits, axis=-1))
    return scalars, (scalars, arrays)
  gradients, (scalars, arrays) = jax.jit(jax.jacrev(g, has_aux=True))(jnp.asarray(case['router_kernel']))
  for name in arrays:
    if name in case:
      case.assert_close(name, arrays[name])
  for name in grads:
    case.assert_close(f'grad_{name}_wrt_router_kernel', gradients[name])
  return scalars, arrays


def masked_router(case, route, k):
  """Dispatch and combine arrays, losses, and their gradients; k = 0 for expert choice."""
  mask, capacity = mask_of(case), case.config['expert_capacity']
  cotangent = case['cotangent']

  def f(logits):
    a, aux = route(logits, mask, capacity)
    dispatch, combine = assignment.masks(a)
    balance, z = reference_losses(logits, mask, k)
    if mask.all():                                                   # then ours needs no translation
      balance, z = aux.losses['balance'], aux.losses['z']
    scalars = dict(aux=balance, z=z, combine=jnp.sum(cotangent * combine))
    return scalars, dict(combine_array=combine, dispatch=dispatch)

  scalars, arrays = compare(case, f, ['aux', 'z', 'combine'] if k else ['z', 'combine'])
  case.assert_close('router_z_loss', scalars['z'])
  expected = case['dispatch_mask'] > 0
  if k:
    case.assert_close('auxiliary_loss', scalars['aux'])
  else:
    # With ignore_padding, flaxformer's experts may fill slots with padding of gate 0, ours leave them
    # empty: real tokens are in the same slots, and only padding is in the slots that we leave.
    assert (expected.sum(axis=1) == 1).all()
    expected = expected & mask[:, :, None, None]
  np.testing.assert_array_equal(arrays['dispatch'], expected)


def scatter_router(case, route, k):
  """Positions and combine weights per token, losses, and their gradients."""
  mask, capacity = mask_of(case), case.config['expert_capacity']
  cotangent = case['cotangent']
  # This router only multiplies the probabilities of padding by 0: padding still chooses the first k
  # experts, takes slots and counts in f. So it is real to us, with its weight and probability removed.
  real = np.ones_like(mask)
  groups, size = mask.shape
  per_token = lambda array: array.reshape(groups, k, size).swapaxes(1, 2)          # [G, S, k]

  def f(logits):
    a, aux = route(logits, real, capacity)
    weights = jnp.where(per_token(assignment.live(a)), per_token(a.weight), 0) * mask[..., None]
    everything = route(logits, real, k * size)[0]                    # no drops: every edge keeps its rank
    indices = jnp.stack([per_token(everything.expert), per_token(everything.slot)], axis=-1)
    balance, z = reference_losses(logits, mask, k, padding_chooses=True)
    balance = aux.losses['balance'] if mask.all() else balance
    return (dict(aux=balance, z=z, combine=jnp.sum(cotangent * weights)),
            dict(dispatch_indices=indices, combine_weights=weights))

  scalars, _ = compare(case, f, ['aux', 'z', 'combine'])
  case.assert_close('auxiliary_loss', scalars['aux'])
  case.assert_close('router_z_loss', scalars['z'])


def bank_of(config):
  """Returns (recipe of experts, {our parameter: flaxformer's name})."""
  activation, gated = activations.gated(config['activations'])
  fields = dict(d_ff=config['intermediate_dim'], activation=activation)
  if not gated:
    return functools.partial(mlp.Mlp, **fields), dict(wi='wi', wo='wo')
  inner, outer = activations.order(config['activations'])
  return functools.partial(glu.Glu, **fields), dict(wi=inner, wg=outer, wo='wo')


class Spread(nnx.Module):
  """The reference's scatter router, to which padding is real: only its weights and probabilities become 0."""

  def __init__(self, router):
    self.router = router
    self.num_experts = router.num_experts

  def __call__(self, x, ctx, carry):
    routed = self.router(x, ctx.replace(mask=jnp.ones_like(ctx.mask)), carry)
    a = routed.assignment
    real = jnp.take_along_axis(ctx.mask, a.token, axis=1)
    return routed.replace(assignment=a.replace(weight=jnp.where(real, a.weight, 0)))


class Recording(nnx.Module):
  """A router that keeps what it saw and answered: flaxformer scales losses and metrics otherwise."""

  def __init__(self, router):
    self.router = router
    self.num_experts = router.num_experts

  def __call__(self, x, ctx, carry):
    routed = self.router(x, ctx, carry)
    self.seen = nnx.data((x, ctx.mask, routed))
    return routed


ROUTERS = {'TokensChooseMaskedRouter': 'masked', 'TokensChooseScatterRouter': 'scatter',
           'ExpertsChooseMaskedRouter': 'experts'}


def reports(kind, w, seen, k, ignore_padding, factor, minimum):
  """Returns the reference's losses and metrics of one sparse layer, dict name -> f32[].

  Args:
    kind: a value of ROUTERS. w: f32[D,E]. seen: of `Recording`.
    factor, minimum: of the capacity, which may be more than the group there.
  """
  x, mask, routed = seen
  a, numbers = routed.assignment, routed.aux.metrics
  capacity = max(round(factor * a.num_tokens / a.num_experts), minimum)
  assert a.capacity == min(capacity, a.num_tokens)
  values = dict(auxiliary_loss=routed.aux.losses['balance'], router_z_loss=routed.aux.losses['z'],
                fraction_tokens_left_behind=numbers['left_behind'],
                router_confidence=numbers['router_conf'],
                expert_usage=numbers['slot_usage'] * a.capacity / capacity)
  if not ignore_padding:                                             # then ours need no translation
    return values
  logits = jnp.einsum('gsd,de->gse', x, w, precision='highest')
  balance, z = reference_losses(logits, mask, k, padding_chooses=kind == 'scatter')
  values |= dict(auxiliary_loss=0.0 if kind == 'experts' else balance, router_z_loss=z)
  if kind != 'masked':
    # Padding has slots there. It counts as dispatched, but not among the tokens, and has no confidence.
    dispatched = jnp.ones(a.token.shape, bool) if kind == 'experts' else assignment.live(a)
    taken = metrics.experts_per_token(a.replace(expert=jnp.where(dispatched, 0, a.dead)))
    weight = jnp.where(assignment.live(a), a.weight, 0)
    slots = a.token.shape[0] * a.num_experts * capacity
    values |= dict(fraction_tokens_left_behind=1 - jnp.sum(taken > 0) / mask.sum(),
                   router_confidence=weight.sum() / dispatched.sum(), expert_usage=dispatched.sum() / slots)
  return values


def context(mask):
  i = mask.astype(jnp.int32)
  return contract.Context(mask=mask, ids=i, positions=i, segments=i, step=jnp.int32(0),
                          tokens=mask.sum().astype(jnp.float32))


def padded(batch, length, divisor):
  """Returns (batch, length) of the reference: more rows, or longer ones, until E divides the tokens."""
  rows = next(n for n in range(divisor + 1) if (batch + n) * length % divisor == 0)
  columns = next((n for n in range(divisor + 1) if batch * (length + n) % divisor == 0), divisor * length)
  return (batch, length + columns) if columns * batch <= rows * length else (batch + rows, length)


def group_size(tokens, divisor, most):
  """Returns S of the reference, at most `most`, for a number of groups that is a multiple of `divisor`."""
  groups = max(tokens // most, divisor)
  while tokens % groups or groups % divisor:
    groups += 1
  return tokens // groups


class Padded(nnx.Module):
  """A sparse layer that gets the zeros of `padded` behind its rows; whether they are `real` is told."""

  def __init__(self, layer, real):
    self.layer = layer
    self.real = real

  def __call__(self, x, ctx, carry):
    batch, length, _ = x.shape
    to = padded(batch, length, self.layer.router.num_experts)
    pad = [(0, to[0] - batch), (0, to[1] - length)]
    mask = jnp.pad(ctx.mask, pad, constant_values=self.real)
    y, aux, carry = self.layer(jnp.pad(x, [*pad, (0, 0)]), context(mask), carry)
    return y[:batch, :length], aux, carry


def router_of(kind, k, batch_priority, **slots):
  """Returns the configuration of our router; `kind` is a value of ROUTERS."""
  fields = dict(name='expert_choice') if kind == 'experts' else tokens_choose(k, batch_priority)[1]
  return dict(fields, **slots)


def moe_layer(case):
  """A whole Moe layer with the reference's weights: outputs, metrics, all gradients."""
  config, derived = case.config, case.config['derived']
  kind, ignore = case.option('router', ROUTERS), config['ignore_padding_tokens']
  k = config['num_selected_experts']
  bank, names = bank_of(config)
  router = router_of(kind, k, config['batch_prioritized_routing'], num_experts=config['num_experts'],
                     capacity_factor=(config['capacity_factor'],) * 2,
                     min_capacity=config['min_expert_capacity'])
  layer = moe.Moe(case['inputs'].shape[-1], executor='einsum', group_size=derived['tokens_per_group'],
                  experts=bank, router=lookup.recipe('router', router), rngs=nnx.Rngs(0))
  kernels = {f'expert/{theirs}/kernel': getattr(layer.experts, ours) for ours, theirs in names.items()}
  kernels['router/router_weights/w/kernel'] = layer.router.w
  for name, parameter in kernels.items():
    parameter[...] = jnp.asarray(case[f'param:{name}'])
  # The reference pads with zero vectors at the end, and what it pads counts as tokens.
  batch, length, _ = case['inputs'].shape
  assert padded(batch, length, config['num_experts']) == (derived['padded_batch'], derived['padded_length'])
  pad = [(0, derived['padded_batch'] - batch), (0, derived['padded_length'] - length), (0, 0)]

  def f(layer, inputs):
    x = jnp.pad(inputs, pad)
    real = jnp.any(x != 0, axis=-1) if ignore else jnp.ones(x.shape[:2], bool)
    w = layer.router.w[...]
    layer.router = Recording(Spread(layer.router) if kind == 'scatter' and ignore else layer.router)
    y, _, _ = layer(x, context(real), {})
    values = reports(kind, w, layer.router.seen, k, ignore, config['capacity_factor'],
                     config['min_expert_capacity'])
    y = y[:batch, :length]
    loss = jnp.sum(y * case['cotangent']) + 0.01 * values['auxiliary_loss'] + 0.001 * values['router_z_loss']
    return loss, (y, values)

  inputs = jnp.asarray(case['inputs'])
  graph, state = nnx.split(layer)
  grads, (y, values) = jax.jit(jax.grad(lambda state, x: f(nnx.merge(graph, state), x), argnums=(0, 1),
                                        has_aux=True))(state, inputs)
  case.assert_close('outputs', y)
  for name, value in values.items():
    case.assert_close(f'metric:{name}', value)
  of = nnx.merge(graph, grads[0])
  gradients = {f'expert/{theirs}/kernel': getattr(of.experts, ours) for ours, theirs in names.items()}
  gradients['router/router_weights/w/kernel'] = of.router.w
  for name, gradient in gradients.items():
    case.assert_close(f'grad:{name}', gradient[...])
  case.assert_close('grad:inputs', grads[1])


def group_and_capacity_table(case):
  """The reference's group sizes are legal here, and its capacities ours (never above S here)."""
  for row in case['table'].tolist():
    *given, experts, replicas, most, factor, minimum, batch, length, groups, size, capacity = row
    assert padded(*given, experts * replicas) == (batch, length), row
    assert group_size(batch * length, experts * replicas, most) == size, row
    assert moe.num_groups(batch, length, size) == (groups, size), row
    assert assignment.capacity(size, experts, factor / 100, minimum) == min(size, capacity), row
