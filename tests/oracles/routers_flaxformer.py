"""flaxformer's routers and MoeLayer in our terms; what it does with padding is translated here.

`route(logits, mask, capacity) -> (Assignment, Aux)` is the public function under test.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.experts import glu
from stmoe.experts import mlp
from stmoe.layers import moe


def mask_of(case):
  """bool[G,S]: flaxformer counts padding as real unless ignore_padding_tokens."""
  return case['padding_mask'] > 0 if 'padding_mask' in case else np.ones(case['token_inputs'].shape[:2], bool)


def reference_losses(logits, mask, k):
  """(auxiliary_loss, router_z_loss): f counts any of k choices; padding is zeroed, means divide by S."""
  probs = jax.nn.softmax(logits, axis=-1)
  share = jnp.mean(mask, axis=1)
  balance = losses.balance_of_groups(probs, choices.choose(probs, k), mask)
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
    balance, z = reference_losses(logits, mask, max(k, 1))
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
    probs = jax.nn.softmax(logits, axis=-1)
    balance = losses.balance_of_groups(probs * mask[..., None], choices.choose(probs, k), real).mean()
    balance = aux.losses['balance'] if mask.all() else balance
    return (dict(aux=balance, z=reference_losses(logits, mask, k)[1], combine=jnp.sum(cotangent * weights)),
            dict(dispatch_indices=indices, combine_weights=weights))

  scalars, _ = compare(case, f, ['aux', 'z', 'combine'])
  case.assert_close('auxiliary_loss', scalars['aux'])
  case.assert_close('router_z_loss', scalars['z'])


def bank_of(config):
  """Returns (recipe of experts, {our parameter: flaxformer's name})."""
  if len(config['activations']) == 2:
    assert config['activations'] == ['gelu', 'linear']
    return (functools.partial(glu.Glu, d_ff=config['intermediate_dim'], activation='gelu'),
            dict(wi='wi_0', wg='wi_1', wo='wo'))
  return (functools.partial(mlp.Mlp, d_ff=config['intermediate_dim'], activation=config['activations'][0]),
          dict(wi='wi', wo='wo'))


def context(mask):
  i = mask.astype(jnp.int32)
  return contract.Context(mask=mask, ids=i, positions=i, segments=i, step=jnp.int32(0),
                          tokens=mask.sum().astype(jnp.float32))


def moe_layer(case, router, k):
  """A whole Moe layer with the reference's weights: outputs, metrics, all gradients.

  Args:
    router: recipe; takes num_experts, capacity_factor and min_capacity.
  """
  config, derived = case.config, case.config['derived']
  bank, names = bank_of(config)
  layer = moe.Moe(
      case['inputs'].shape[-1], executor='einsum', group_size=derived['tokens_per_group'], experts=bank,
      router=functools.partial(router, num_experts=config['num_experts'],
                               capacity_factor=(config['capacity_factor'],) * 2,
                               min_capacity=config['min_expert_capacity']), rngs=nnx.Rngs(0))
  kernels = {f'expert/{theirs}/kernel': getattr(layer.experts, ours) for ours, theirs in names.items()}
  kernels['router/router_weights/w/kernel'] = layer.router.w
  for name, parameter in kernels.items():
    parameter[...] = jnp.asarray(case[f'param:{name}'])
  # The reference pads with zero vectors at the end, and what it pads counts as tokens.
  batch, length, _ = case['inputs'].shape
  pad = [(0, derived['padded_batch'] - batch), (0, derived['padded_length'] - length), (0, 0)]

  def f(layer, inputs):
    x = jnp.pad(inputs, pad)
    real = jnp.any(x != 0, axis=-1) if config['ignore_padding_tokens'] else jnp.ones(x.shape[:2], bool)
    y, aux, _ = layer(x, context(real), {})
    grouped = x.reshape(derived['num_groups'], derived['tokens_per_group'], -1)
    logits = jnp.einsum('gsd,de->gse', grouped, layer.router.w[...], precision='highest')
    balance, z = reference_losses(logits, real.reshape(grouped.shape[:2]), max(k, 1))
    balance = balance if k else 0.0
    if not config['ignore_padding_tokens']:
      balance, z = aux.losses['balance'], aux.losses['z']
    y = y[:batch, :length]
    loss = jnp.sum(y * case['cotangent']) + 0.01 * balance + 0.001 * z
    return loss, (y, balance, z, aux.metrics)

  inputs = jnp.asarray(case['inputs'])
  grads, (y, balance, z, numbers) = jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(layer, inputs)
  case.assert_close('outputs', y)
  case.assert_close('metric:auxiliary_loss', balance)
  case.assert_close('metric:router_z_loss', z)
  case.assert_close('metric:fraction_tokens_left_behind', numbers['left_behind'])
  case.assert_close('metric:router_confidence', numbers['router_conf'])
  case.assert_close('metric:expert_usage', numbers['slot_usage'])
  gradients = {f'expert/{theirs}/kernel': getattr(grads[0].experts, ours) for ours, theirs in names.items()}
  gradients['router/router_weights/w/kernel'] = grads[0].router.w
  for name, gradient in gradients.items():
    case.assert_close(f'grad:{name}', gradient[...])
  case.assert_close('grad:inputs', grads[1])
  assert assignment.capacity(derived['tokens_per_group'], config['num_experts'], config['capacity_factor'],
                             config['min_expert_capacity']) == derived['expert_capacity']


def group_and_capacity_table(case):
  """The reference's group sizes are legal here, and its capacities ours (never above S here)."""
  for row in case['table'].tolist():
    _, _, experts, _, _, factor, minimum, batch, length, groups, size, capacity = row
    assert moe.num_groups(batch, length, size) == (groups, size), row
    assert assignment.capacity(size, experts, factor / 100, minimum) == min(size, capacity), row
