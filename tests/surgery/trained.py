"""Tiny models of random numbers as surgeries meet them, and what they compute."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import lookup
from stmoe import router_state as state
from stmoe.surgery import layout
from tests.models import tiny

E = 4
TOP2 = dict(name='st_moe', num_experts=E, k=2, capacity_factor=(None, None), second_policy='all')
MLP = dict(name='mlp', d_ff=6, activation='gelu', use_bias=True)


def config(experts=MLP, router=None, layers=(('dm', 2),), wrapped=False, **fields):
  """Returns the ConfigDict of a model of dense and sparse blocks; `wrapped`: these beside shared experts."""
  moe = dict(executor='einsum', router=router or TOP2, experts=experts)
  sparse = dict(layer='shared', d_ff=4, inner=dict(name='moe') | moe) if wrapped else dict(layer='moe') | moe
  blocks = dict(d=dict(layer='dense', d_ff=5), m=sparse)
  model = dict(name='lm', layers=layers, **tiny.SHAPES) | fields
  return ml_collections.ConfigDict(dict(model=model, blocks=blocks)).lock()


def abstract(cfg):
  c = cfg.to_dict()
  return nnx.eval_shape(lambda: lookup.recipe('model', c['model'])(blocks=c['blocks'], rngs=nnx.Rngs(0)))


def params(cfg, seed=0):
  """Returns numbered parameters and router state of a model of random numbers; whole numbers are 0."""
  rng = np.random.default_rng(seed)
  number = lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), a.dtype) if a.dtype == 'float32' else (
      jnp.zeros(a.shape, a.dtype))
  return layout.numbered(jax.tree.map(number, whole(cfg)))


def whole(cfg):
  return nnx.to_pure_dict(nnx.state(abstract(cfg)))


def logits(cfg, blocks, seed=0):
  """Returns the logits [B,T,V] of the model of `cfg` with numbered parameters `blocks`."""
  graphdef, *shapes = nnx.split(abstract(cfg), nnx.Param, state.RouterState)
  shapes = [nnx.to_pure_dict(part) for part in shapes]
  placed = layout.placed(blocks, layout.together(*shapes))
  parts = [jax.tree.map_with_path(lambda path, _: layout.at(placed, [e.key for e in path]), tree)
           for tree in shapes]
  return np.asarray(_forward(graphdef, parts, tiny.batch('lm', 2, 6, seed=seed)))


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, parts, batch):
  return nnx.merge(graphdef, *parts)(batch)[0]


def calibration(**items):
  """Returns a calibration of two sparse layers, decoder_01 and decoder_03, that all have the same `items`."""
  return lambda *names: {layer: {name: np.asarray(items[name], np.float64) for name in names}
                         for layer in ('decoder_01', 'decoder_03')}


def none(*names):
  raise AssertionError(f'nobody needs {names}')
