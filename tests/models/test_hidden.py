"""States after blocks, asked for: those of every model, scanned or not, and nothing else changes."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import hidden
from stmoe.models import vit

BLOCKS = dict(d=tiny.BLOCKS['d'], s=tiny.BLOCKS['s'])
SHAPES = dict(d_model=8, num_heads=2, head_dim=4)
ASKED = dict(lm=('decoder_04', 'decoder_00', 'decoder_02'), t5=('decoder_01', 'encoder_03'),
             vit=('encoder_02',))
IMAGES = dict(image=jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), weights=jnp.array([[1], [0]]))
MODELS = dict(lm=dict(name='lm', vocab_size=tiny.VOCAB, layers=(('d', 1), ('sd', 2)), **SHAPES),
              t5=dict(name='t5', vocab_size=tiny.VOCAB, encoder=(('sd', 2),), decoder=(('d', 2),), **SHAPES),
              vit=dict(name='vit', vocab_size=5, layers=(('d', 3),), image_size=4, patch_size=2, **SHAPES))


def build(name, **fields):
  return lookup.recipe('model', MODELS[name] | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))


def batch(name):
  return IMAGES if name == 'vit' else tiny.batch(name, 2, 8, real=[[8], [5]])


@jax.jit
def forward(model, batch):
  outputs, reported = model(batch)
  return outputs, *hidden.apart(reported)


@pytest.mark.parametrize('name', MODELS)
def test_the_last_state_is_what_the_head_reads(name):
  model = build(name)
  outputs, aux, none = forward(model, batch(name))
  same, aux_too, states = forward(modules.showing(model, ASKED[name]), batch(name))
  np.testing.assert_array_equal(same, outputs)
  assert none == {} and set(aux_too) == set(aux) and set(states) == set(ASKED[name])
  last = states[ASKED[name][0]]
  stack = model.stacks()[-1]
  x = stack.norm(last.x)
  mine = model.head(vit.POOLING['token'](x)) if name == 'vit' else model.logits(x)
  np.testing.assert_allclose(mine, outputs, rtol=1e-5, atol=1e-5)
  real = batch(name)['weights'] > 0 if name == 'vit' else batch(name)['decoder_segment_ids'] > 0
  np.testing.assert_array_equal(last.mask, jnp.broadcast_to(real, last.mask.shape))


def test_states_of_scanned_blocks_are_those_of_a_loop():
  """Block by block, by hand: the second unit of the second segment is block 3, and then 4."""
  looped = build('lm', scan_layers=False)
  states = forward(modules.showing(looped, looped.decoder.blocks()), batch('lm'))[2]
  assert sorted(states) == [f'decoder_{i:02d}' for i in range(5)]
  apart = [np.abs(np.asarray(states[a].x - states[b].x)).max() for a in states for b in states if a < b]
  assert min(apart) > 1e-3
  scanned = build('lm')
  params = nnx.state(looped, nnx.Param)
  stacked = {number: jax.tree.map(lambda *a: jnp.stack(a), *units.values())
             for number, units in nnx.to_pure_dict(params)['decoder']['segments'].items()}
  whole = nnx.to_pure_dict(params)
  whole['decoder']['segments'] = stacked
  nnx.update(scanned, jax.tree.map(lambda a: a, whole))
  found = forward(modules.showing(scanned, scanned.decoder.blocks()), batch('lm'))[2]
  for name, state in states.items():
    np.testing.assert_allclose(found[name].x, state.x, rtol=1e-5, atol=1e-6)


def test_a_block_that_is_not_there_is_one_line():
  with pytest.raises(errors.UserError, match="no block 'decoder_05'.*decoder_00, decoder_01"):
    modules.showing(build('lm'), ['decoder_05'])
