"""DiT of the references with our names, for the checks of Switch-DiT and ProMoE."""

from flax import nnx
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import contract
from stmoe.parts import sinusoids
from stmoe.parts import visible


def context(mask):
  """The Context of tokens bool[B,N] that see each other."""
  tokens = jnp.sum(mask, dtype=jnp.float32)
  ctx = contract.Context(**contract.numbered(mask), step=jnp.int32(0), tokens=tokens, train=True)
  seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments))
  return ctx.replace(visible=dict(attention=seen))


def modulation(experts, k, d_model):
  """The sparse layer of Switch-DiT's block."""
  return dict(name='moe', executor='einsum', group_size=None,
              router=dict(name='switch_dit', num_experts=experts, k=k),
              experts=dict(name='linear', d_ff=d_model, use_bias=True, init_scale=0.0))


def model(c, blocks, layers, variance=True):
  """The model of a case, unrolled, so that layers are apart."""
  return lookup.recipe('model', dict(
      name='dit', vocab_size=c['num_classes'], d_model=c['D'], layers=layers, num_heads=c['heads'],
      head_dim=c['D'] // c['heads'], image_size=c['size'], patch_size=c['patch'], channels=c['in_channels'],
      variance=variance, scan_layers=False))(blocks=blocks, rngs=nnx.Rngs(0))


def places(c):
  """f32[N,D] of the grid of patches."""
  return sinusoids.grid(c['size'] // c['patch'], c['D'])


def channels_last(x):
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x):
  return jnp.moveaxis(x, -1, 1)


# The reference's name of a module -> ours, of its matrix (w) and its vector (b).
ENDS = {'x_embedder.proj': 'patches.{}', 't_embedder.mlp.0': 'time.{}i', 't_embedder.mlp.2': 'time.{}o',
        'y_embedder.embedding_table': 'classes.table', 'final_layer.linear': 'head.{}',
        'final_layer.adaLN_modulation.1': 'head.modulation.{}'}
IN_BLOCK = {'attn.proj': 'block.attention.{}o', 'mlp.fc1': 'block.layer.{}i', 'mlp.fc2': 'block.layer.{}o',
            'adaLN_modulation.1': 'modulation.{}'}


def paths(name, at):
  """The paths of ours that hold the reference's array `name`: one, or those of queries, keys and values.

  at: (number of a block) -> the path of its `AdaLnZero`.
  """
  module, _, kind = name.rpartition('.')
  letter = 'b' if kind == 'bias' else 'w'
  if not module.startswith('blocks.'):
    return [ENDS[module].format(letter)]
  _, number, inside = module.split('.', 2)
  if inside == 'attn.qkv':
    return [f'{at(int(number))}block.attention.{letter}{part}' for part in 'qkv']
  return [at(int(number)) + IN_BLOCK[inside].format(letter)]


def ours(name, value):
  """The arrays of ours in the reference's array `name`, in the order of `paths`."""
  if name.startswith('x_embedder') and value.ndim == 4:              # [D, C, P, P]
    return [value.transpose(2, 3, 1, 0).reshape(-1, len(value))]
  value = value.T if name.endswith('.weight') and not name.startswith('y_embedder') else value
  return np.split(value, 3, axis=-1) if '.attn.qkv.' in name else [value]


def theirs(name, values, like):
  """The reference's array `name` of the arrays `values` of ours; `like` is one of its shape."""
  value = np.concatenate([np.asarray(v) for v in values], axis=-1)
  if name.startswith('x_embedder') and like.ndim == 4:
    channels, size = like.shape[1:3]
    return value.reshape(size, size, channels, -1).transpose(3, 2, 0, 1)
  return value.T if name.endswith('.weight') and not name.startswith('y_embedder') else value


def reach(module, path):
  """What is at a dotted path below a module: a Variable."""
  for key in path.split('.'):
    module = module[int(key)] if key.isdigit() else getattr(module, key)
  return module


def put(module, values):
  """Writes dict path -> array into a module; all its parameters must be there."""
  for path, value in values.items():
    variable = reach(module, path)
    assert variable.shape == value.shape, (path, variable.shape, value.shape)
    variable[...] = jnp.asarray(value, jnp.float32)
  there = {'.'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}
  assert there == set(values), there ^ set(values)
