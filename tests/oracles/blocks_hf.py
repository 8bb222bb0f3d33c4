"""Sparse blocks of transformers in our form, and how their choices are compared.

The order of a token's choices has no meaning; ours falls by the score that selects.
"""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup

HIGHEST = jax.default_matmul_precision('highest')


def chosen(a):
  """Returns (experts i64[T,k], weights f32[T,k]) of Assignment `a` of token choice, without drops."""
  listed = lambda field: np.asarray(field).reshape(a.token.shape[0], a.choices, -1).swapaxes(1, 2).reshape(
      -1, a.choices)                                                 # [G, k*S] -> [T, k]
  return listed(a.expert), listed(a.weight)


def compare_choices(case, a, scores=None):
  """Compares the set of experts of every token, and their weights.

  Args:
    scores: f32[T,E] that the reference chose by, or None. Among equal ones it may choose any expert.
  """
  expert, weight = chosen(a)
  theirs = np.array(case['top_k_index'])
  if scores is not None:
    expert, theirs = (_first_of_equal(scores, one) for one in (expert, theirs))
  order, mine = np.argsort(theirs, axis=-1, kind='stable'), np.argsort(expert, axis=-1, kind='stable')
  np.testing.assert_array_equal(np.take_along_axis(expert, mine, -1), np.take_along_axis(theirs, order, -1))
  back = np.argsort(order, axis=-1)
  case.assert_close('top_k_weights', np.take_along_axis(np.take_along_axis(weight, mine, -1), back, -1))


def _first_of_equal(scores, expert):
  """`expert` i64[T,k] with each replaced by the first expert of its token that has the same score."""
  own = np.take_along_axis(scores, expert, axis=-1)                  # [T, k]
  return np.argmax(np.isclose(scores[:, None], own[..., None], rtol=0, atol=1e-6), axis=-1)


def experts(case):
  """Returns (configuration of the experts, gate f32[E,D,F], up f32[E,D,F], down f32[E,F,D]) of `case`.

  Torch's [out, in] becomes [in, out]. act(x W_gate) * (x W_up): our wi is the matrix under the activation.
  """
  gate, up = np.split(case['gate_up_proj'], 2, axis=1)               # rows 0..F-1, rows F..2F-1
  fields = dict(name='glu', d_ff=case.config['F'], activation=case.option('act', activations.TORCH, 'silu'))
  return fields, gate.swapaxes(1, 2), up.swapaxes(1, 2), case['down_proj'].swapaxes(1, 2)


class Certain(nnx.Module):
  """A router whose single gate is over its sum, too: 1. Ours keep the probability, and so their gradient."""

  def __init__(self, router):
    self.router = router
    self.num_experts = router.num_experts

  def __call__(self, x, ctx, carry):
    routed = self.router(x, ctx, carry)
    return routed.replace(assignment=routed.assignment.replace(
        weight=jnp.ones_like(routed.assignment.weight)))


def softmax_block(case, normalised, shared=None):
  """Checks a block whose gates are probabilities, or these over their sum; see `block`."""
  block(case, dict(name='deepseek_moe', normalize_gates=normalised), shared,
        certain=normalised and case.config['k'] == 1)


def block(case, router, shared=None, bias=None, certain=False):
  """Checks the block of `case`: its logits, choices, weights and output.

  Args:
    router: router and its fields; k and the number of experts are those of the case.
    shared: fields of the layer `shared` around it, or None.
    bias:   f32[E] of the router's state, or None.
    certain: see `Certain`.
  """
  c = case.config
  fields, *weights = experts(case)
  routed = dict(name='moe', executor='einsum', experts=fields,
                router=dict(router, num_experts=c['E'], k=c['k']))
  made = routed if shared is None else dict(shared, name='shared', inner=routed,
                                            activation=fields['activation'])
  layer = lookup.recipe('layer', made)(c['D'], rngs=nnx.Rngs(0))
  inner = layer if shared is None else layer.inner
  inner.router.w[...] = case['router_weight'].T
  if bias is not None:
    inner.router.bias[...] = bias
  for name, value in zip(('wi', 'wg', 'wo'), weights):
    getattr(inner.experts, name)[...] = value
  if shared is not None:
    for name, theirs in (('wi', 'gate'), ('wg', 'up'), ('wo', 'down')):
      getattr(layer.shared, name)[...] = case[f'shared_{theirs}_proj'].T
    if layer.gate is not None:
      layer.gate[...] = case['shared_expert_gate'].T
  x = case['hidden_states']
  ctx = models_hf.context(np.zeros(x.shape[:2], np.int32))

  @jax.jit
  def run(layer, x):
    inner = layer if shared is None else layer.inner
    logits = jnp.einsum('btd,de->bte', x, inner.router.w[...], precision='highest')
    if certain:
      inner.router = Certain(inner.router)
    return layer(x, ctx, {})[0], inner.router(x, ctx, {}).assignment, logits

  with HIGHEST:
    y, a, logits = run(layer, x)
  case.assert_close('router_logits', logits.reshape(-1, c['E']))
  compare_choices(case, a, case['router_logits'] if bias is None else None)
  case.assert_close('output', y)
