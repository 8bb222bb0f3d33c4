"""Checks of MomentumSMoE: single layers, and whole small language models with their cache."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.attention import span_attention
from stmoe.models import span_lm


def momentum_layer(case):
  c = case.config
  layer = _layer(case, dict(name='momentum', mu=c['mu'], gamma=c['gamma2']))
  mixture, y, carry = _run(layer, case, {'momentum': case['moment_in']})
  case.assert_close('moe_core', mixture)
  case.assert_close('moment_out', carry['momentum'])
  # In pre-norm the residual is the block's here and the layer's there.
  case.assert_close('output', case['inp'] + y if c['pre_lnorm'] else y)


def adam_layer(case):
  c = case.config
  # Their layer asks for its index, ours is another layer; the heavy-ball one takes gamma2 too.
  first = c['layer_index'] == 0
  adam = dict(name='adam_momentum', beta1=c['beta1'], beta2=c['beta2'], gamma1=c['gamma1'],
              gamma2=c['gamma2'])
  layer = _layer(case, dict(adam if first else dict(name='momentum', gamma=c['gamma2']), mu=c['mu']))
  carry = {'momentum': case['m_in'], 'adam_p': case['p_in'], 'adam_v': case['v_in']}
  mixture, y, carry = _run(layer, case, carry)
  case.assert_close('moe_core', mixture)
  for ours, theirs in (('momentum', 'm_out'), ('adam_p', 'p_out'), ('adam_v', 'v_out')):
    case.assert_close(theirs, carry[ours])
  # The Adam layer has lost its residual in both forms: x - (x + u) = -u, which is what ours returns.
  case.assert_close('output', case['inp'] + y if c['pre_lnorm'] and not first else y)


def _layer(case, fields):
  """The layer of `fields` with the weights of `case`; all tensors of the reference are [out, in]."""
  c = case.config
  router = dict(name='smoe', num_experts=c['E'])
  inner = dict(name='moe', executor='einsum', router=router,
               experts=dict(name='mlp', d_ff=c['F'], use_bias=True))
  layer = lookup.recipe('layer', dict(fields, post_norm=not c['pre_lnorm'], inner=inner))(
      c['D'], rngs=nnx.Rngs(0))
  layer.inner.router.k = c['k']                                      # the reference allows 1, gate 1
  _set(layer.inner.router.w, case['gate_weight'].T)
  _set(layer.inner.router.b, case['gate_bias'])
  bank = layer.inner.experts
  _set(bank.wi, case['w1'].swapaxes(1, 2)), _set(bank.bi, case['b1'])
  _set(bank.wo, case['w2'].swapaxes(1, 2)), _set(bank.bo, case['b2'])
  return layer


def _run(layer, case, carry):
  """(c, y, carry) of the layer on `inp`; in pre-norm its input is normalised by the block."""
  x, scale, bias = (jnp.asarray(case[name]) for name in ('inp', 'ln_scale', 'ln_bias'))
  if case.config['pre_lnorm']:
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
  else:
    _set(layer.norm.scale, scale), _set(layer.norm.bias, bias)
  ctx = models_hf.context(np.zeros(x.shape[:2], np.int32))

  @jax.jit
  def run(layer, x, carry):
    y, _, after = layer(x, ctx, carry)
    return layer.inner(x, ctx, {})[0], y, after
  return run(layer, x, jax.tree.map(jnp.asarray, carry))


LETTERS = {'g': 'residual', 'm': 'momentum', 'a': 'adam_momentum'}


def stack(case):
  c = case.config
  weights = case.group('param/')
  model = _model(case)
  _set(model.pe, weights.pop('key_pe')[0])
  _set(model.embed.table, weights.pop('in_emb.weight'))
  _set(model.head.w, weights.pop('out_emb.weight').T)
  _set(model.head.b, weights.pop('out_emb.bias'))
  blocks = models_hf.layers_of(model.decoder)
  for i, block in enumerate(blocks):
    _block(block, f'layers.{i}.', weights, c['k'])
  assert not weights, sorted(weights)
  logits, caches = jax.jit(functools.partial(_forward, tokens=case['tokens'], span=c['attn_span']))(
      model, jnp.asarray(case['h_cache_in']))
  case.assert_close('log_probs', jax.nn.log_softmax(logits))
  case.assert_close('h_cache_out', caches)


def _model(case):
  """Our unrolled model: the architecture lists, for every block, attention (s) and its feed-forward layer."""
  c = case.config
  inner = dict(name='moe', executor='einsum', router=dict(name='smoe', num_experts=c['E']),
               experts=dict(name='mlp', d_ff=c['F'], use_bias=True))
  gammas = dict(g={}, m=dict(mu=c['mu'], gamma=c['gamma2'], post_norm=True),
                a=dict(beta1=c['beta1'], beta2=c['beta2'], gamma1=c['gamma1'], mu=c['mu'], gamma2=c['gamma2'],
                       post_norm=True))
  blocks = {letter: dict(layer=name, inner=inner, **gammas[letter]) for letter, name in LETTERS.items()}
  blocks['f'] = dict(layer='dense', d_ff=c['F'], use_bias=True)
  number = c['nb_layers'] * case.option('base_arch', dict(transformer=1, glam=2))
  attention, letters = (c['architecture'][first:2 * number:2] for first in (0, 1))
  assert set(attention) == {'s'} and set(letters) <= set(blocks), (
      f'{case}: the check cannot translate architecture={c["architecture"]!r}')
  case.option('pre_lnorm', {False: None}, False)                     # of whole models none was released
  # Adam is the first layer's; their other `a` layers are heavy-ball ones.
  letters = letters[0] + letters[1:].replace('a', 'm')
  return span_lm.SpanLM(vocab_size=c['vocab'], d_model=c['D'], layers=tuple((x, 1) for x in letters),
                        blocks=blocks, num_heads=c['heads'], head_dim=c['D'] // c['heads'],
                        span=c['attn_span'], scan_layers=False, rngs=nnx.Rngs(0))


def _block(block, prefix, weights, k):
  pop = lambda name: weights.pop(f'{prefix}{name}')
  for ours, theirs in (('wq', 'query'), ('wk', 'key'), ('wv', 'val'), ('wo', 'out')):
    _set(getattr(block.attention, ours), pop(f'attn.proj_{theirs}.weight').T)
  norms = {1: block.attention_norm}
  if f'{prefix}ff.fc1.weight' in weights:
    norms[3] = block.layer_norm
    for w, b, theirs in ((block.layer.wi, block.layer.bi, 'fc1'), (block.layer.wo, block.layer.bo, 'fc2')):
      _set(w, pop(f'ff.{theirs}.weight').T), _set(b, pop(f'ff.{theirs}.bias'))
  else:
    norms[2] = block.layer_norm
    router, bank = block.layer.inner.router, block.layer.inner.experts
    router.k = k
    _set(router.w, pop('smoe.gate.gate.weight').T), _set(router.b, pop('smoe.gate.gate.bias'))
    for w, b, theirs in ((bank.wi, bank.bi, 'htoh4'), (bank.wo, bank.bo, 'h4toh')):
      _set(w, pop(f'smoe.experts.{theirs}.weight').swapaxes(1, 2))
      _set(b, pop(f'smoe.experts.{theirs}.bias'))
    _set(block.layer.norm.scale, pop('smoe.layer_norm.weight'))
    _set(block.layer.norm.bias, pop('smoe.layer_norm.bias'))
  for i in (1, 2, 3):                                                # every block has three, and uses two
    scale, bias = pop(f'norm{i}.weight'), pop(f'norm{i}.bias')
    if i in norms:
      _set(norms[i].scale, scale), _set(norms[i].bias, bias)


def _forward(model, caches, tokens, span):
  """(logits, caches [L,B,W,D] of the next block) of the tokens that follow on `caches`."""
  ctx, x = models_hf.context(tokens, causal=True), model.embed(jnp.asarray(tokens))
  carry, after = model.decoder.init_carry(x), []
  seen = span_attention.Visible(pe=model.pe[...], segments=ctx.segments)
  for block, cache in zip(models_hf.layers_of(model.decoder), caches, strict=True):
    after.append(jnp.concatenate([cache, x], axis=1)[:, -span:])
    x, _, carry = block(x, ctx.replace(visible=dict(attention=seen.replace(history=cache))), carry)
  return model.head(x), jnp.stack(after)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
