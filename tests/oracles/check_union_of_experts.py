"""Checks of Union of Experts: gate, selection by experts and by sequences, attention, the decomposition."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe.attention import union_of_experts as attention_lib
from stmoe.core import assignment
from stmoe.core.execute import gather
from stmoe.core.units import shards
from stmoe.experts import mlp
from stmoe.parts import norm
from stmoe.parts import rotary
from stmoe.parts import visible
from stmoe.routers import sequence_selection
from stmoe.surgery import union_of_experts as surgery

PRE_NORM = {True: True, False: False}
# Where no activation is named it is the method's, the exact GELU.
ACTIVATIONS = activations.TORCH | {'gelu erf': 'gelu_exact', None: 'gelu_exact', 'gelu tanh': 'gelu'}
ROPE = {'half-rotation, positions 0..m-1 of the compacted list, not the original positions': 'compacted'}


def gate(case):
  case.assert_close('scores', _scores(case, case['w'], case['b']))


def decomposition(case):
  x, pieces = case['x'], surgery.cut(
      {ours: jnp.asarray(case[name]) for ours, name in dict(wi='w1', bi='b1', wo='w2', bo='b2').items()},
      case.config['E'])
  bank, every = _bank(case, pieces['wi'], pieces['bi'], pieces['wo'], pieces['bo']), np.arange(len(x))
  at = jnp.asarray(np.broadcast_to(every, (1, case.config['E'], len(x))), jnp.int32)
  a = assignment.cap(shards.edges(at, jnp.ones((1, len(x), case.config['E']))), len(x))
  case.assert_close('dense', gather.execute(jnp.asarray(x)[None], a, bank)[0])
  one = lambda e: gather.execute(jnp.asarray(x)[None], assignment.kill(a, a.expert == e), bank)[0]
  case.assert_close('parts', np.stack([one(e) for e in range(case.config['E'])]))


def mlp_data_selection(case):
  c, x = case.config, jnp.asarray(case['x'])
  g = _scores(case, case['gate_w'], case['gate_b'])
  case.assert_close('gate_scores', g)
  at = _places(case, g, c['m'])
  bank = _bank(case, *(case[name] for name in ('w1', 'b1', 'w2', 'b2')))

  def run(x, bank):
    weighed = shards.edges(at, shards.GATES['none'](g, 1.0))
    out = _block(case, x, gather.execute(x, assignment.cap(weighed, c['S']), bank))
    return jnp.sum(out * case['upstream']), out

  (dx, grads), out = jax.jit(jax.grad(run, (0, 1), has_aux=True))(x, bank)
  case.assert_close('out', out)
  case.assert_close('grad_x', dx)
  case.assert_close('grad_w1', grads.wi[...])
  case.assert_close('grad_w2', grads.wo[...])


def attention(case):
  c, x = case.config, jnp.asarray(case['x'])
  g = _scores(case, case['gate_w'], case['gate_b'], c['heads'])
  case.assert_close('gate_scores', g)
  at = _places(case, g, case['positions'].shape[-1])
  layer = attention_lib.UnionOfExperts(
      x.shape[-1], num_heads=c['heads'], head_dim=c['head_dim'], k=c['k'], over='batch', use_bias=True,
      rotary_base=c['rope_base'], positions=case.option('rope', ROPE), allow_causal=True, rngs=nnx.Rngs(0))
  p = c['head_dim']
  for name, value in dict(wq=case['w_q'], bq=case['b_q'], wk=case['w_kv'][..., :p], wv=case['w_kv'][..., p:],
                          bk=case['b_kv'][:, :p], bv=case['b_kv'][:, p:], wo=case['w_o'],
                          bo=case['b_o']).items():
    _set(getattr(layer.heads, name), value)
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32), causal=True)
  seen = visible.Visible(mask=visible.causal(ctx.segments), turn=rotary.table(ctx.positions, p))

  def run(layer, x):
    out = _block(case, x, layer.attend(x, g, at, jnp.ones(at.shape, bool), seen))
    return jnp.sum(out * case['upstream']), out

  (grads, dx), out = jax.jit(jax.grad(run, (0, 1), has_aux=True))(layer, x)
  case.assert_close('out', out)
  case.assert_close('grad_x', dx)
  case.assert_close('grad_w_q', grads.heads.wq[...])


def mlp_expert_selection(case):
  c, x = case.config, jnp.asarray(case['x'])
  bank = _bank(case, *(case[name] for name in ('w1', 'b1', 'w2', 'b2')))
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32), causal=False)
  for name, weighed in (('out', 'none'), ('out_gated', 'multiply')):
    router = sequence_selection.SequenceSelection(x.shape[-1], num_experts=c['E'], k=c['k'], length=c['S'],
                                                  gate=weighed, rngs=nnx.Rngs(0))
    _set(router.w, case['w_switch'].T), _set(router.b, case['b_switch'])
    routed = jax.jit(lambda router, x: router(x, ctx, {}))(router, x)
    case.assert_close(name, _block(case, x, gather.execute(x, routed.assignment, bank)))
  probs = jax.nn.softmax(router.logits(x, ctx), axis=-1)
  case.assert_close('probs', probs[:, 0])
  chosen = np.asarray(routed.assignment.expert).reshape(c['B'], c['k'], c['S'])
  case.assert_close('experts', np.sort(chosen[..., 0], axis=1))
  assert (chosen == chosen[..., :1]).all()


def _scores(case, w, b, experts=None):
  """g [B,S,E] of the gate with w [E,D] and b [E]."""
  c, x = case.config, case['x']
  assert len(w) == (experts or c['E'])
  probs = jax.nn.softmax(x @ w.T + b, axis=-1)
  return shards.scores(jnp.asarray(probs), jnp.ones(x.shape[:2], bool), c['k'], 'batch',
                       c.get('capacity', 1.0), c.get('epsilon', 1e-8))


def _places(case, g, m):
  """The recorded places [B,E,m], which are those of ours with a positive score, and others of score 0."""
  at, ours = case['positions'].swapaxes(0, 1), np.asarray(shards.selected(g, jnp.ones(g.shape[:2], bool), m))
  assert ours.shape == at.shape and (np.diff(at) > 0).all()
  for b, e in np.ndindex(at.shape[:2]):
    scored = lambda places, b=b, e=e: set(places[g[b, places, e] > 0].tolist())
    assert scored(ours[b, e]) == scored(at[b, e]), (case, b, e)
  return jnp.asarray(at)


def _bank(case, wi, bi, wo, bo):
  activation = case.option('activation', ACTIVATIONS)
  bank = mlp.Mlp(wi.shape[1], num_experts=len(wi), d_ff=wi.shape[2], use_bias=True, rngs=nnx.Rngs(0))
  for name, value in dict(wi=wi, bi=bi, wo=wo, bo=bo).items():
    _set(getattr(bank, name), value)
  bank.activation = activation
  return bank


def _block(case, x, y):
  """norm(x + y), or x + y where the reference norms nothing inside of a block."""
  if case.option('pre_lnorm', PRE_NORM):
    for name in ('ln_g', 'ln_b'):
      case.ignore(name, 'this form of the block norms nothing')
    return x + y
  after = norm.LayerNorm(x.shape[-1], rngs=nnx.Rngs(0))
  _set(after.scale, case['ln_g']), _set(after.bias, case['ln_b'])
  return after(x + y)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable.set_value(jnp.asarray(value))
