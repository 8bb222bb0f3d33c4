"""Checks of FactorLLM: the chunks of a network, whom the router should choose, and what that costs."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.layers import factor_llm as layers
from stmoe.parts.around import factor_llm as around
from stmoe.surgery import dense

NAMES = {'gate': 'wi', 'up': 'wg', 'down': 'wo'}


def mlp(case):
  c = case.config
  layer = _built(case)
  assert c['scale'] == c['experts'] // c['k']

  def run(layer, x):
    y, aux, _ = layer(x, _context(x), {})
    return jnp.sum(y * case['cotangent']), (y, aux)

  with jax.default_matmul_precision('highest'):
    grads, (y, _) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(layer, jnp.asarray(case['x']))
    _compare_choice(case, layer)
    _compare_losses(case, layer)
  case.assert_close('output', y)
  case.assert_close('grad_out_x', grads[1])
  case.assert_close('grad_out_router_w', grads[0].router.w[...].T)
  for theirs, ours in NAMES.items():
    case.assert_close(f'grad_out_{theirs}', getattr(grads[0].experts, ours)[...].swapaxes(1, 2))


def _built(case):
  """Our layer of the case's network, cut by the surgery; torch has [out,in]."""
  c = case.config
  activation = case.option('activation', activations.TORCH)
  layer = layers.FactorLLM(c['D'], d_ff=c['F'], num_experts=c['experts'], k=c['k'], activation=activation,
                           executor='einsum', rngs=nnx.Rngs(0))
  arrays = {ours: jnp.asarray(case[f'{theirs}_proj'].T) for theirs, ours in NAMES.items()}
  for name, chunks in dense.cut(arrays, c['experts']).items():
    getattr(layer.experts, name)[...] = chunks
    getattr(layer.teacher, name)[...] = arrays[name]
  layer.router.w[...], layer.router.b[...] = jnp.asarray(case['router_w'].T), jnp.asarray(case['router_b'])
  return layer


def _context(x, visible=None):
  return contract.Context(**contract.numbered(jnp.ones(x.shape[:2], bool)), step=jnp.int32(0),
                          tokens=jnp.float32(x.shape[0] * x.shape[1]), visible=visible)


def _compare_choice(case, layer):
  x = jnp.asarray(case['x'])
  a = layer.router(x, _context(x), {}).assignment
  case.assert_close('selected', jnp.asarray(a.masks()[0].any(-1), jnp.float32))


def _compare_losses(case, layer):
  """The teacher's output, the errors of the chunks, the label, both losses and the router's gradients."""
  c, h = case.config, jnp.asarray(case['h_star'])
  whole, aux, _ = layer(h, _context(h, around.Teacher()), {})
  case.assert_close('teacher_output', whole)
  label = layers.nearest(_outputs(layer, h), whole, c['k'])
  each = dict(pa=lambda logits: layers.prior_loss(logits, label, c['clip']),
              bal=lambda logits: layers.balance_loss(logits, c['k']))
  for name, ours, loss in (('pa', 'prior', 'pa_loss'), ('bal', 'balance', 'balance_loss')):
    value, grads = jax.jit(jax.value_and_grad(lambda router, f=each[name]: f(router.logits(h, None)).mean()))(
        layer.router)
    case.assert_close(loss, value[None])
    case.assert_close(f'grad_{name}_router_w', grads.w[...].T)
    if name == 'pa':
      case.assert_close('grad_pa_router_b', grads.b[...])
    if name == 'bal' or c['clip'] == layers.CLIP:                    # the layer reports the same
      np.testing.assert_allclose(aux.losses[ours], value, rtol=1e-5)
  same = case.option('teacher_state_equals_x', {True: True, False: False})
  assert same == np.array_equal(case['x'], case['h_star'])
  chunks = _outputs(layer, h)
  case.assert_close('chunk_error', layers.apart(chunks, whole / c['scale']))
  case.assert_close('label', layers.nearest(chunks, whole, c['k']))


def _outputs(layer, h):
  """[N,B,T,D] of all chunks."""
  number = layer.router.num_experts
  rows = jnp.broadcast_to(h.reshape(-1, h.shape[-1]), (number, h.shape[0] * h.shape[1], h.shape[-1]))
  return layer.experts(layouts.Buckets(rows)).x.reshape(number, *h.shape)


def combination_label(case):
  chunks, target = jnp.asarray(case['chunks']), jnp.asarray(case['target'])
  assert chunks.shape[0] == case.config['N']
  np.testing.assert_array_equal(layers.subset(chunks, target, case.config['k']), case['label'])
