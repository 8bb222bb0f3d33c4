"""Checks of MoEUT: sigma-MoE over passes, SwitchHead, LibMoE's layer, the stack of tied groups of layers."""

import functools

import check_switch_head
import check_x_moe
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import models_libmoe

from stmoe import lookup
from stmoe.attention import switch_head as attention
from stmoe.layers import moeut
from stmoe.parts import stack
from stmoe.routers import deepseek_v3
from stmoe.routers import sigma_moe as router_lib
from stmoe.routers import smoe


def switch_head(case):
  check_switch_head.switch_head(case)


def sigma_moe(case):
  """One layer in several passes; the router reads `sel_input` if there is one, else x."""
  c = case.config
  case.option('tied_rows', {True: None, False: None}, False)         # of the data
  read = case.option('separate_router_input', {True: 'sel_input', False: 'x'})
  layer = _sparse(c['D'], c['E'], c['k'], c['F'])
  layer.tied_as = 'layer'
  ctx = models_hf.context(jnp.zeros((c['B'], c['T']), jnp.int32))

  def loss(x, arrays):
    own = _with(layer, arrays)
    seen = x if read == 'x' else jnp.asarray(case['sel_input'])
    carry, entropy, outputs, decided = own.init_carry(x[0]), 0.0, [], []
    for one, other in zip(x, seen):
      logits = own.router.logits(other, ctx)
      a, aux = router_lib.sigma_moe(logits, ctx.mask, c['k'], choose=_recorded(case, len(outputs)))
      aux, carry = moeut.over_passes(aux, logits[:, :, None], ctx, carry, 'layer')
      entropy += aux.losses['entropy'] / c['passes']
      outputs.append(models_libmoe.execute(one, a, own.experts))
      decided.append((models_libmoe.by_choice(a, c['k']), jax.nn.sigmoid(logits)))
    y = jnp.stack(outputs)
    return jnp.sum(y * case['cotangent']) + 0.01 * entropy, (y, entropy, decided)

  arrays = dict(w=case['expert_sel'].T, wi=case['keys'], wo=case['values'])
  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (dx, grads), (y, entropy, decided) = run(jnp.asarray(case['x']), jax.tree.map(jnp.asarray, arrays))
  case.assert_close('output', y)
  case.assert_close('reg_loss', entropy)
  case.assert_close('scores', jnp.stack([weights for weights, _ in decided]))
  models_libmoe.same_experts(case, jnp.stack([scores for _, scores in decided]), c['k'])
  for name, grad in dict(x=dx, expert_sel=grads['w'].T, keys=grads['wi'], values=grads['wo']).items():
    case.assert_close(f'grad_{name}', grad)


def model(case):
  """Groups of layers, repeated; the regulariser is a mean over the repeats and a sum over the layers."""
  c = case.config
  letters = ''.join(chr(ord('a') + i) for i in range(c['group_size']))
  assert c['layers'] == c['group_size'] * c['repeats']
  turned = int(c.get('rotate_fraction', 0.5) * c['head_dim'])
  made = _stack(c, letters, turned)
  for number, letter in enumerate(letters):
    _copy(case, number, made.tied[f'block_{letter}'])
  ctx = models_hf.context(jnp.zeros((c['B'], c['T']), jnp.int32), causal=c['causal'])
  seen = check_switch_head._seen(ctx, turned, c.get('rope_base', 10_000), c['causal'])
  ctx = ctx.replace(visible=dict(attention=seen))

  def loss(made, x):
    y, aux = made(x, ctx)
    of = lambda inside: sum((a.losses['entropy'] for name, a in aux.items() if ('.' in name) == inside), 0.0)
    entropy = (c['entropy_reg'] * of(False) + c['att_entropy_reg'] * of(True)) / c['repeats']
    return jnp.sum(y * case['cotangent']) + entropy, (y, entropy)

  (grads, dx), (y, entropy) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(made, case['x'])
  case.assert_close('output', y)
  case.assert_close('reg_loss', entropy[None])
  case.assert_close('grad_x', dx)
  for number, letter in enumerate(letters):
    held, name = grads.tied[f'block_{letter}'], f'grad/layers/{number}'
    case.assert_close(f'{name}/ffn/expert_sel', held.layer.router.w[...].T)
    for part in held.attention.reports:
      dw = getattr(held.attention, part).router.heads.w[...].swapaxes(1, 2)         # [H, E, D]
      case.assert_close(f'{name}/attention/sel_{part}', dw.reshape(-1, c['D']))


def libmoe_layer(case):
  """LibMoE's layer of language models: chosen scores over their sum."""
  c, mask = case.config, jnp.ones(case['x'].shape[:2], bool)
  decide = case.option('selection_mode', dict(sigmoid=_sigmoid, gate=_softmax, softmax=_softmax))
  regularise = case.option('perplexity_reg_mode', check_x_moe._REGULARISERS)
  experts = models_libmoe.bank(case)

  def run(x, w):
    logits = jnp.einsum('btd,ed->bte', x, w, precision='highest')
    scores, a = decide(case, logits, mask)
    y = models_libmoe.execute(x, a, experts)
    shown = scores if regularise is check_x_moe._shares_of_all else jax.nn.softmax(logits)
    loss = c['perplexity_reg'] * regularise(shown, case['selected'], mask)
    return jnp.sum(y * case['cotangent']) + loss, (scores, a, y, loss)

  args = [jnp.asarray(case[name]) for name in ('x', 'router')]
  grads, (scores, a, y, loss) = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(*args)
  case.assert_close('scores', scores)
  models_libmoe.same_experts(case, scores, c['k'])
  case.assert_close('weights', models_libmoe.by_choice(a, c['k']))
  case.assert_close('output', y)
  case.assert_close('reg_loss', loss)
  for name, grad in zip(('grad_x', 'grad_router'), grads):
    case.assert_close(name, grad)


def _sigmoid(case, logits, mask):
  """(scores f32[B,T,E], Assignment) of DeepSeek-V3's router with a bias of 0."""
  a, _ = deepseek_v3.deepseek_v3(logits, jnp.zeros(logits.shape[-1]), mask, case.config['k'],
                                 choose=models_libmoe.recorded(case))
  return jax.nn.sigmoid(logits), a


def _softmax(case, logits, mask):
  """(scores f32[B,T,E], Assignment) of plain SMoE: a softmax over the chosen logits is p over their sum."""
  a, _ = smoe.smoe(logits, mask, case.config['k'], choose=models_libmoe.recorded(case))
  return jax.nn.softmax(logits), a


def _recorded(case, number):
  """`choose` of the choices of one pass."""
  return lambda scores, k: jnp.asarray(case['selected'][number])


def _sparse(width, experts, k, d_ff):
  """MoEUT's layer of ReLU experts without biases."""
  return lookup.recipe('layer', dict(
      name='moeut', executor='einsum', router=dict(name='sigma_moe', num_experts=experts, k=k),
      experts=dict(name='mlp', d_ff=d_ff)))(width, rngs=nnx.Rngs(0))


def _with(layer, arrays):
  """A copy of `layer` with other weights w of the router, wi and wo of the experts."""
  router = models_libmoe.copy(layer.router, w=arrays['w'])
  experts = models_libmoe.copy(layer.experts, wi=arrays['wi'], wo=arrays['wo'])
  copy = jax.tree.map(lambda a: a, layer)
  copy.router, copy.experts = router, experts
  return copy


class _Same(nnx.Module):
  """In place of the stack's last norm, which the recorded stack leaves to its caller."""

  def __init__(self, d_model, *, rngs):
    pass

  def __call__(self, x):
    return x


def _stack(c, letters, turned):
  """The stack of `c`, with a tied block for every layer of a group."""
  k, d_ff = c['ff_k'], c['F']
  router = dict(name='sigma_moe', num_experts=c['att_experts'], k=c['att_k'])
  mixed = ('v', 'o') if c['att_experts'] > 1 else ('o',)
  block = dict(layer='moeut', tied=True, executor='einsum', experts=dict(name='mlp', d_ff=d_ff),
               router=dict(name='sigma_moe', num_experts=c['ff_experts'], k=k),
               attention=dict(name='moeut', router=router, mixed=mixed, executor='einsum',
                              nope_dim=c['head_dim'] - turned))
  attend = functools.partial(attention.SwitchHead, num_heads=c['heads'], head_dim=turned)
  return stack.Stack(c['D'], name='decoder', pattern=((letters, c['repeats']),), norm=_Same,
                     blocks=dict.fromkeys(letters, block), attention=attend, rngs=nnx.Rngs(0))


def _copy(case, number, block):
  """Sets the weights of layer `number` of a group."""
  name = f'param/layers/{number}'
  check_switch_head._copy(case, block.attention, f'{name}/attention/', case.config['heads'],
                         case.config['att_experts'], case.config['head_dim'])
  arrays = {'layer.router.w': case[f'{name}/ffn/expert_sel'].T, 'layer.experts.wi': case[f'{name}/ffn/keys'],
            'layer.experts.wo': case[f'{name}/ffn/values']}
  for norm, part in (('ln1', 'attention'), ('ln2', 'layer')):
    arrays |= {f'{part}.norm.scale': case[f'{name}/{norm}/weight'],
               f'{part}.norm.bias': case[f'{name}/{norm}/bias']}
  for path, value in arrays.items():
    variable = block
    for key in path.split('.'):
      variable = getattr(variable, key)
    assert variable.shape == value.shape, (path, variable.shape, value.shape)
    variable[...] = jnp.asarray(value)
