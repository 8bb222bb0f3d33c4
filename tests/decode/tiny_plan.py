"""Tiny models and their plans, prompts, and decoding by recomputation, for the tests of this folder."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import lookup
from stmoe import router_state as state

EOS = 1
SHAPES = dict(d_model=8, num_heads=2, head_dim=4)
MODELS = dict(lm=dict(name='lm', layers=(('dm', 2),), **SHAPES),
              t5=dict(name='t5', encoder=(('m', 1),), decoder=(('dm', 1),), **SHAPES))
ROUTER = dict(name='st_moe', num_experts=4, k=2)


@dataclasses.dataclass
class Plan:
  """What generation needs of a Blueprint, with numbers."""
  graphdef: object
  shapes: dict
  mesh: jax.sharding.Mesh

  def model(self, params, routers):
    return nnx.merge(self.graphdef, params, routers)


@functools.cache
def build(name, vocab=11, router='st_moe', dtype='float32', **fields):
  """Returns (plan, params, router_state) of MODELS[name]; logits are far from uniform, and so is routing.

  dtype: of activations; parameters are float32.
  """
  blocks = dict(d=dict(layer='dense', d_ff=12), m=dict(
      layer='moe', router=ROUTER | dict(name=router) | (fields if router == 'st_moe' else {}),
      experts=dict(name='mlp', d_ff=8, init_scale=1.0)))
  if router != 'st_moe':
    blocks['m']['router'].pop('k')
  recipe = lookup.recipe('model', MODELS[name] | dict(vocab_size=vocab, dtype=dtype))
  model = recipe(blocks=blocks, rngs=nnx.Rngs(3))
  graphdef, params, routers = nnx.split(model, nnx.Param, state.RouterState)
  sharp = lambda a: 30 * a if a.shape[-2:] == (8, 4) else a
  params = jax.tree.map(sharp, nnx.to_pure_dict(params))
  params['embed']['table'] = 2 * params['embed']['table']
  routers = nnx.to_pure_dict(routers)
  mesh = axes.make_mesh(devices=jax.devices()[:1])
  return Plan(graphdef, dict(params=params, router_state=routers), mesh), params, routers


def prompts(name, vocab=11, rows=3, seed=0):
  """Returns a batch of prompts of different lengths; a language model's start with id 0."""
  rng = np.random.default_rng(seed)
  real = np.array([4, 1, 3, 2, 4, 3, 1, 2])[:rows, None]
  mask = np.arange(4) < real
  ids = np.where(mask, rng.integers(2, vocab, mask.shape), 0)
  stack = 'encoder' if name == 't5' else 'decoder'
  if name == 'lm':
    ids[:, 0] = 0
  return {f'{stack}_{field}': jnp.asarray(a, jnp.int32) for field, a in (
      ('input_tokens', ids), ('segment_ids', mask), ('positions', np.arange(4) * mask))}


@jax.jit
def _logits(model, batch):
  return model(batch, alone=True)[0]


def next_logits(name, model, batch, row, written):
  """f32[V] after row `row` of `batch` and the ids `written`, by recomputing everything in one padded row."""
  one = {key: a[row:row + 1] for key, a in batch.items()}
  given = [0]
  if name == 'lm':
    real = int(one['decoder_segment_ids'].sum())
    given = np.asarray(one['decoder_input_tokens'])[0, :real].tolist()
  ids = np.zeros((1, 12), np.int32)
  ids[0, :len(given) + len(written)] = given + list(written)
  mask = np.arange(12) < len(given) + len(written)
  one |= dict(decoder_input_tokens=jnp.asarray(ids), decoder_segment_ids=jnp.asarray(mask[None] * 1),
              decoder_positions=jnp.arange(12)[None])
  return np.asarray(_logits(model, one))[0, len(given) + len(written) - 1]
