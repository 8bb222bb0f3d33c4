"""Checks of Read-ME: masks by activation, the masked network, the router of all layers and its loss."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core.execute import einsum
from stmoe.experts import read_me as experts
from stmoe.layers import read_me
from stmoe.surgery import read_me as surgery


def router_loss(case):
  c = case.config
  feature, mask = jnp.asarray(case['feature']), jnp.asarray(case['private'])
  assert int(mask[0].sum()) == c['private_units_of_cluster0']
  distance = read_me.centred(read_me.distances(feature, mask), jnp.ones(feature.shape[:2], bool))
  case.assert_close('distance', distance)
  case.assert_close('label', jnp.argmax(distance, -1).astype(jnp.int32))
  loss, grad = jax.value_and_grad(lambda pred: read_me.router_loss(
      pred, distance, c['alpha'], c['label_smoothing']).mean())(jnp.asarray(case['pred']))
  case.assert_close('loss', loss[None])
  case.assert_close('grad_pred', grad)
  right = case['pred'].argmax(-1) == case['label']
  case.assert_close('accuracy', np.float64(right.mean())[None])


def mask_and_mlp(case):
  c = case.config
  mask = surgery.masks(case['activation'], c['remain_rate'])
  if c['remain_rate'] == 1:                                          # ours keeps all, theirs not the least
    mask = np.float32(case['activation'] > case['activation'].min(1, keepdims=True))
  case.assert_close('private', np.float32(read_me.private(mask)))
  case.assert_close('residual', np.float32(mask.min(0)))
  activation = case.option('activation', activations.TORCH, 'silu')
  bank = experts.ReadMe(c['D'], num_experts=c['clusters'], d_ff=c['F'], activation=activation,
                        rngs=nnx.Rngs(0))
  for ours, theirs in (('wi', 'gate_proj'), ('wg', 'up_proj'), ('wo', 'down_proj')):
    getattr(bank, ours)[...] = jnp.asarray(case[theirs].T)
  ones = np.zeros_like(case['ids']) + 1
  calls = dict(ids=(case['ids'], mask), expert1=(ones, mask), dense=(ones, np.ones_like(mask)))
  for name, (ids, of) in calls.items():
    bank.mask[...] = jnp.asarray(of, jnp.float32)
    case.assert_close(f'y_{name}', _run(bank, case['x'], ids))


@jax.jit
def _run(bank, x, ids):
  """[B,T,D] of tokens x [B,T,D] that go to the experts `ids`."""
  edges = assignment.from_choices(ids[..., None], jnp.ones((*ids.shape, 1)), bank.mask.shape[0])
  with jax.default_matmul_precision('highest'):
    return einsum.execute(x, assignment.cap(edges, edges.num_tokens), bank)


NAMES = dict(q='q_proj', k='k_proj', v='v_proj', o='o_proj', first='proj_1', second='proj_2')


def pre_gating_router(case):
  c = case.config
  net = read_me.Net(c['vocab'], c['width'], c['heads'], c['layers'], c['clusters'], c['normalizer'],
                    activation=case.option('activation', activations.TORCH), base=c['rope_theta'],
                    epsilon=c['eps'], rngs=nnx.Rngs(0))
  net.embed[...] = jnp.asarray(case['p:embed.weight'])
  _set(case, net.out, 'proj_out')
  net.norm.scale[...] = jnp.asarray(case['p:out_layernorm.weight'])
  for number, block in enumerate(net.blocks):
    parts = dict(block.attention.items()) | dict(first=block.first, second=block.second)
    for ours, theirs in NAMES.items():
      _set(case, parts[ours], f'{theirs}_{number}')
    for norm, name in ((block.attention_norm, 'input'), (block.norm, 'post_attention')):
      norm.scale[...] = jnp.asarray(case[f'p:{name}_layernorm_{number}.weight'])
  positions = np.broadcast_to(np.arange(case['ids'].shape[1]), case['ids'].shape)
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(lambda net, ids: net(ids, positions, np.ones_like(positions)))(net, case['ids'])
  case.assert_close('logits', logits)
  case.assert_close('choice', jnp.argmax(logits, -1).astype(jnp.int32))


def _set(case, layer, name):
  layer.w[...] = jnp.asarray(case[f'p:{name}.weight'].T)
  layer.b[...] = jnp.asarray(case[f'p:{name}.bias'])
