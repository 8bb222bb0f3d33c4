"""Checks of M-SMoE (arXiv:2310.01334): alignment, statistics, groups and means of `surgery/merge.py`.

Matrices are those of torch, [out,in] or [E,out,in]; ours are transposed.
"""

import blocks_hf
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from stmoe import lookup
from stmoe.core import contract
from stmoe.surgery import merge as surgery

EPSILON = 1e-7                           # of the reference's quotient
ACTIVATIONS = {'relu': lambda x: np.maximum(x, 0), 'gelu': lambda x: x * special.ndtr(x)}
INWARD, OUTWARD = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')


def permutation_weight_matching(case):
  outward = case.option('include_wo', {True: [('wo', OUTWARD)], False: []})
  named = {(name,): (names, None) for name, names in [('wi', INWARD), *outward]}
  pairs = {(name,): np.stack([case[f'ref_{name}'].T, case[f'tgt_{name}'].T]) for (name,) in named}
  made = surgery.aligned(pairs, named)
  wi = np.asarray(made['wi',])[1]                                    # [D, F]
  order = (wi[:, :, None] == case['tgt_wi'].T[:, None]).all(0).argmax(1)
  case.assert_close('perm', order.astype(np.int32))
  case.assert_close('aligned_wi', wi.T)
  wo = np.asarray(made['wo',])[1].T if outward else case['tgt_wo'][:, order]
  case.assert_close('aligned_wo', wo)
  score = sum((pair[0] * np.asarray(made[path])[1]).sum() for path, pair in pairs.items())
  case.assert_close('score', np.float32([score]))
  activation = case.option('activation', ACTIVATIONS)
  case.assert_close('y', activation(case['x'] @ wi) @ wo.T)
  if not outward:
    case.ignore('ref_wo', 'W_out is no part of what is compared')


def permutation_activation_matching(case):
  activation = case.option('activation', ACTIVATIONS)
  assert case.option('eps', {1e-7: True})
  x = np.float64(case['x'])
  hidden = np.stack([activation(x @ np.float64(case[f'{kind}_wi']).T) for kind in ('ref', 'tgt')])
  scores = surgery.correlation(len(x), hidden.sum(1), (hidden ** 2).sum(1),
                               np.einsum('tf,eth->efh', hidden[0], hidden))
  case.assert_close('perm', surgery.matching(scores[1]).astype(np.int32))


def merge(case):
  labels, used = case['labels'], case['usage'].astype(np.float64)
  groups = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
  bank = {('wi',): case['wi'].swapaxes(1, 2), ('wo',): case['wo'].swapaxes(1, 2)}
  named = {('wi',): (INWARD, None), ('wo',): (OUTWARD, None)}
  for group in groups:
    own = {path: array[np.array(group)] for path, array in bank.items()}
    if case.option('permute_inside_group', {True: True, False: False}):      # to the lowest member
      own = surgery.aligned(own, named)
    total = used[group].sum()
    # Where our mean divides by the usage, the reference divides by usage + 1e-7: 0 where nothing is used.
    quotient = total / (total + EPSILON)
    for (name,), array in own.items():
      mean = quotient * np.asarray(surgery.mean(array, list(range(len(group))), used[group]))
      for expert in group:
        np.testing.assert_allclose(mean.T, case[f'merged_{name}'][expert], rtol=1e-6, atol=1e-6)


def _allocated(used, average, merged):
  """i[L]; ours, but as many groups as experts are there those above the least usage of all."""
  if average < used.shape[1]:
    return surgery.allocated(used, average, merged)
  pooled = np.where(merged[:, None], used, 1)
  pooled[np.arange(len(pooled)), pooled.argmax(1)] = 1
  return (pooled > pooled.min()).sum(1)


def _grouped(case, capacities):
  """Yields (layer, members of its groups) by the case's statistics, which are compared."""
  merged = np.array(case.config.get('merged_layers', [True] * len(case['usage'])))
  numbers = _allocated(case['usage'], case.config['average_groups'], merged)
  case.assert_close('num_groups', numbers.astype(np.int32))
  labels, heads = (np.full(case['usage'].shape, -1, np.int32) for _ in range(2))
  for layer, number in enumerate(numbers):
    used, alike = case['usage'][layer], case['similarity'][layer]
    members = surgery.grouped(used, alike, number, capacities[layer])
    # The reference numbers groups by the usage of their heads, ours by the heads themselves.
    falling = sorted(members, key=lambda group: -used[group[0]])
    heads[layer, :number] = [group[0] for group in falling]
    for label, group in enumerate(falling):
      labels[layer, group] = label
    yield layer, members
  case.assert_close('labels', labels)
  case.assert_close('dominant', heads)


def _statistics(case, k):
  """Compares usage and similarity of the router logits [L,T,E]."""
  logits = np.float64(case['router_logits'])
  chosen = np.argsort(-logits, axis=-1, kind='stable')[..., :k]
  load = np.stack([np.bincount(layer.ravel(), minlength=logits.shape[-1]) for layer in chosen])
  case.assert_close('usage', np.stack([surgery.usage(layer) for layer in load]))
  products = np.einsum('lti,ltj->lij', logits, logits)
  case.assert_close('similarity', np.stack([surgery.similarity(layer) for layer in products]))


def statistics_and_groups(case):
  _statistics(case, k=1)
  # The decoder's counter does not count in the reference.
  layers, capacity = case.config['layers'], case.config['encoder_group_capacity']
  encoder = layers // 2
  for _ in _grouped(case, [capacity] * encoder + [None] * (layers - encoder)):
    pass


def mixtral_merge(case):
  c = case.config
  _statistics(case, c['top_k'])
  names = dict(w1='wi', w2='wo', w3='wg')      # silu(x wi) * x wg
  for layer, members in _grouped(case, [None] * c['layers']):
    table, arrays = surgery.table(members), {}
    for theirs, ours in names.items():
      array = case[theirs][layer].swapaxes(1, 2)
      arrays[ours] = jnp.stack([surgery.mean(array, group, case['usage'][layer][group]) for group in members])
      merged = np.asarray(arrays[ours])[np.asarray(table)].swapaxes(1, 2)
      np.testing.assert_allclose(merged, case[f'merged_{theirs}'][layer], rtol=1e-6, atol=1e-6)
    y = _block(c, arrays, table, case['gate'][layer], case['x'])
    np.testing.assert_allclose(y, case['y'][layer], rtol=1e-5, atol=1e-5)


def _block(c, arrays, table, gate, x):
  """The output [1,T,D] of Mixtral's sparse layer with merged experts, the router as it is."""
  router = dict(name='deepseek_moe', num_experts=c['E'], k=c['top_k'], normalize_gates=True)
  layer = lookup.recipe('layer', dict(
      name='moe', executor='einsum', experts=dict(name='glu', d_ff=c['F'], activation='silu'),
      router=dict(name='remap', num_experts=len(arrays['wi']), inner=router)))(c['D'], rngs=nnx.Rngs(0))
  for name, array in arrays.items():
    getattr(layer.experts, name)[...] = array
  layer.router.table[...] = table
  layer.router.inner.w[...] = jnp.asarray(gate.T)
  ctx = contract.Context(**contract.numbered(jnp.ones(x.shape[:2], bool)), step=jnp.int32(0),
                         tokens=jnp.float32(x.shape[1]))
  if c['top_k'] == 1:
    layer.router = blocks_hf.Certain(layer.router)
  return jax.jit(lambda layer, x: layer(x, ctx, {})[0])(layer, jnp.asarray(x))
