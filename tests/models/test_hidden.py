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


EMPTIED = dict(lm=('decoder_02', 'decoder_03', ['', '.attention']),
               vit=('encoder_00', 'encoder_01', ['', '.attention']),
               t5=('decoder_00', 'decoder_01', ['', '.attention', '.cross']))


# A loop is one whatever the model: those of other models are with `make test-slow`.
@pytest.mark.parametrize('name, scan', [
    pytest.param(name, scan, id=f'{"scanned" if scan else "loop"}-{name}',
                 marks=[pytest.mark.slow] * (not scan and name != 'lm'))
    for scan in (True, False) for name in MODELS])
def test_a_block_without_the_outputs_of_its_sub_layers_leaves_the_stream_as_it_was(name, scan):
  """One of the blocks that share a scan; blocks before it, and the model itself, stay what they were."""
  model, (before, block, ends) = build(name, scan_layers=scan), EMPTIED[name]
  shown = modules.showing(model, [b for stack in model.stacks() for b in stack.blocks()])
  whole = forward(shown, batch(name))[2]
  emptied = forward(modules.edited(shown, {block + end: jnp.zeros_like for end in ends}), batch(name))[2]
  np.testing.assert_array_equal(emptied[block].x, whole[before].x)
  assert [name for name in whole if (emptied[name].x == whole[name].x).all()] == [
      name for name in whole if name.partition('_')[0] != block.partition('_')[0] or name < block]
  one = forward(modules.edited(shown, {block + ends[-1]: jnp.zeros_like}), batch(name))[2]
  assert (one[block].x != emptied[block].x).any() and (one[block].x != whole[block].x).any()
  np.testing.assert_array_equal(forward(shown, batch(name))[2][block].x, whole[block].x)


@pytest.mark.parametrize('name', ASKED)
def test_a_state_of_another_pass_decides_all_that_follows(name):
  """Activation patching, and a sum of two edits of one name in their order."""
  model, x = build(name), batch(name)
  other = jax.tree.map(lambda a: a[::-1], x)
  point = model.stacks()[-1].blocks()[-1]
  state = forward(modules.showing(model, [point]), other)[2][point].x
  patched = modules.edited(model, {f'{point}{hidden.END}': lambda y: state})
  np.testing.assert_allclose(forward(patched, x)[0], forward(model, other)[0], rtol=1e-5, atol=1e-5)
  both = modules.edited(patched, {f'{point}{hidden.END}': lambda y: y + 1.0})
  steered = modules.edited(model, {f'{point}{hidden.END}': lambda y: y + 1.0})
  np.testing.assert_allclose(forward(both, x)[0], forward(steered, other)[0], rtol=1e-5, atol=1e-5)


def test_an_edit_of_nothing_and_one_that_does_not_fit_are_a_line():
  model = build('lm')
  with pytest.raises(errors.UserError, match="called 'decoder_03.attentio'; nearest: decoder_03.attention"):
    modules.edited(model, {'decoder_03.attentio': jnp.zeros_like})
  with pytest.raises(errors.UserError, match=r"'decoder_01.hidden': it is \[2, 8, 8\], and the .* \[2, 8\]"):
    modules.edited(model, {'decoder_01.hidden': lambda y: y[..., 0]})(batch('lm'))
