"""Tiny models with every router, and batches, for the tests of this folder."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from stmoe import errors
from stmoe import lookup
from stmoe import router_state as state
from tests.routers import generic

VOCAB, SIZE = 23, 4                                                  # SIZE: tokens of a routing group
SPARSE = dict(layer='moe', group_size=SIZE, experts=dict(name='mlp', d_ff=8, init_scale=1.0))
BLOCKS = dict(
    d=dict(layer='dense', d_ff=12, activation='gelu', gated=True),
    x=dict(layer='dense', d_ff=12, attention=False),
    s=SPARSE | dict(router=dict(name='switch', num_experts=3, min_capacity=1)),
    g=SPARSE | dict(router=dict(name='gshard', num_experts=3, min_capacity=1)),
    t=SPARSE | dict(router=dict(name='st_moe', num_experts=3, min_capacity=1)),
    e=SPARSE | dict(router=dict(name='expert_choice', num_experts=3, min_capacity=1, allow_causal=True)))

# Attention that routes: values by sigmoids, outputs by a router with capacity and noise.
BLOCKS |= {letter: dict(layer='dense', d_ff=12, attention=dict(
    name='switch_head', executor='einsum', group_size=SIZE, mixed=(mixed,), router=router))
    for letter, mixed, router in (('v', 'v', dict(name='sigma_moe', num_experts=3, k=2)),
                                  ('o', 'o', dict(name='switch', num_experts=3, min_capacity=1)))}

# Attention layers as experts: with their own keys beside the feed-forward layer, with common ones before it.
MIXED = dict(name='bam', group_size=SIZE, router=dict(name='st_moe', num_experts=3, min_capacity=1))
BLOCKS |= dict(b=BLOCKS['d'] | dict(attention=MIXED, around=dict(name='parallel')),
               q=BLOCKS['d'] | dict(attention=MIXED | dict(shared_kv=True)))

# Every other router, four experts each, as blocks without attention; and the layers that wrap one. Their
# letters are none of those above, however many there are.
OWN = {BLOCKS[letter]['router']['name'] for letter in 'sgte'}
FEATURES = {'smlp_deterministic', 'partial_prediction'}              # of channels: test_mlp_lm.py
NAMED = {name: chr(0x3041 + i) for i, name in enumerate(              # there are more than letters of ours
    name for name in lookup.available('router') if name not in OWN | FEATURES)}


def plain(name):
  """The sparse block of router `name`: einsum, the executor every representation has."""
  fields = generic.fields(name, vocab_size=VOCAB, min_capacity=1)
  return SPARSE | dict(executor='einsum', attention=False, router=dict(name=name, num_experts=4) | fields)


def wrapped(layer, **fields):
  """The block of wrapper `layer` around the plain SMoE of momentum's paper."""
  inner = {key: value for key, value in plain('smoe').items() if key != 'attention'}
  inner['name'] = inner.pop('layer')
  return dict(layer=layer, attention=False, inner=inner) | fields


BLOCKS |= {letter: plain(name) for name, letter in NAMED.items()}
def wraps(layer):
  """Returns whether the module `layer` of stmoe/layers is a layer around another one."""
  try:
    return 'inner' in lookup.fields('layer', layer)
  except errors.UserError:                                           # it has no class called like its file
    return False


# Tested by themselves: gmlp is of channels (test_mlp_lm.py), shuffled moves tokens between all rows of a
# batch, so that its groups do depend on how that is laid out (tests/layers/test_shuffled.py).
ELSEWHERE = {'gmlp', 'shuffled'}
WRAPPERS = {name: chr(0x30a1 + i) for i, name in enumerate(
    name for name in lookup.available('layer') if wraps(name) and name not in ELSEWHERE)}
fields_of = lambda name: dict(d_ff=8) if 'd_ff' in lookup.fields('layer', name) else {}
BLOCKS |= {letter: wrapped(name, **fields_of(name)) for name, letter in WRAPPERS.items()}
BLOCKS |= {'h': SPARSE | dict(layer='multihash', executor='einsum', attention=False,
                              router=dict(name='hash', num_experts=2, vocab_size=VOCAB),
                              experts=dict(name='linear', d_ff=8)),
           'p': plain('moe_plus_plus') | dict(layer='moe_plus_plus'),
           'c': plain('compete_smoe') | dict(layer='compete_smoe')}
BLOCKS['c']['router'] |= dict(rate=1.0, warm_up=0.0, num_layers=2, most=2, total_steps=1)  # always
# Layers that have experts of their own kind.
ADAPTED = dict(d_ff=8, rank=2, gated=False, executor='einsum', group_size=SIZE, attention=False)
BLOCKS |= {'l': plain('smoe') | dict(layer='latent_moe', latent=4),
           'k': dict(layer='avg_k', d_ff=4, num_blocks=5, k=2, executor='einsum', group_size=SIZE,
                     attention=False),
           'w': dict(layer='mixed_weights', d_ff=8, widths=(4, 8), neuron=True, attention=False),
           'u': plain('sigma_moe') | dict(layer='moeut', tied=True),
           'a': dict(layer='mixlora', router=dict(name='mixlora', num_experts=3), **ADAPTED),
           'f': dict(layer='dynmole', router=dict(name='dynmole', num_experts=3), **ADAPTED)}
# A block whose selection is of a row, whatever is in it: neither padded nor packed rows select alike.
BLOCKS |= {'y': SPARSE | dict(router=dict(name='smoe', num_experts=3), executor='einsum', group_size=None,
                              around=dict(name='mixture_of_depths', share=0.5))}
SHAPES = dict(vocab_size=VOCAB, d_model=8, num_heads=2, head_dim=4)
# AdamSMoE, whose moments pass every later layer, is the first layer, as in its paper.
FIRST, LATER = WRAPPERS['adam_momentum'], [WRAPPERS[name] for name in WRAPPERS if name != 'adam_momentum']
ZOO = ((f'd{FIRST}', 1), (''.join([*NAMED.values(), *LATER, *'hpclkwuaf']), 2))
MODELS = dict(lm=dict(name='lm', layers=(('dstx', 1), ('ge', 2)), **SHAPES),
              zoo=dict(name='lm', layers=ZOO, **SHAPES),
              depth=dict(name='lm', layers=(('dy', 2),), **SHAPES),
              heads=dict(name='lm', layers=(('vobq', 2),), **SHAPES),
              t5=dict(name='t5', encoder=(('se', 2),), decoder=(('tg', 1),), **SHAPES))


@functools.cache
def build(name, **fields):
  """Returns (graphdef, params, router_state) of MODELS[name] with `fields`, as the trainer splits it.

  Router weights are large enough for routing to be decided and for drops.
  """
  model = lookup.recipe('model', MODELS[name] | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))
  graphdef, params, router_state = nnx.split(model, nnx.Param, state.RouterState)
  params = jax.tree.map(lambda a: 30 * a if a.shape[-1] in (2, 3) else a, nnx.to_pure_dict(params))
  return graphdef, params, nnx.to_pure_dict(router_state)


def batch(name, rows, length, seed=0, real=None):
  """Returns a batch of MODELS[name]: `rows` sequences of `real` tokens (default: all) in `length`.

  The encoder of an encoder-decoder gets sequences of the same lengths.
  """
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.full((rows, 1), length if real is None else real)
  stacks = ('encoder', 'decoder') if name == 't5' else ('decoder',)
  made = {}
  for stack in stacks:
    ids = np.where(mask, rng.integers(1, VOCAB, (rows, length)), 0)
    made[f'{stack}_input_tokens'] = ids
    made[f'{stack}_segment_ids'] = mask.astype(np.int32)
    made[f'{stack}_positions'] = np.arange(length) * mask
  made['decoder_target_tokens'] = np.where(mask, rng.integers(1, VOCAB, (rows, length)), 0)
  made['decoder_loss_weights'] = mask.astype(np.int32)
  return {key: jnp.asarray(value, jnp.int32) for key, value in made.items()}


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(graphdef, params, router_state, batch, tokens, count, key=None):
  """Returns (loss, gradients): cross-entropy over `count`, plus router losses averaged over layers."""
  def loss(params):
    model = nnx.merge(graphdef, params, router_state)
    logits, aux = model(batch, key=key, train=True, tokens=tokens)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['decoder_target_tokens'])
    routers = sum(0.03 * value for a in aux.values() for value in a.losses.values()) / len(aux)
    return jnp.sum(nll * batch['decoder_loss_weights']) / count + routers
  return jax.value_and_grad(loss)(params)


def run(name, made, batch, key=None, parts=1):
  """Returns `value_and_grad` of model `made` = build(name), in `parts` microbatches averaged."""
  graphdef, params, router_state = made
  stacks = ('encoder', 'decoder') if name == 't5' else ('decoder',)
  tokens = {s: (batch[f'{s}_segment_ids'] > 0).sum() / jnp.float32(parts) for s in stacks}
  count = batch['decoder_loss_weights'].sum() / jnp.float32(parts)
  size = len(batch['decoder_target_tokens']) // parts
  slices = [{k: a[i * size:(i + 1) * size] for k, a in batch.items()} for i in range(parts)]
  results = [value_and_grad(graphdef, params, router_state, part, tokens, count, key) for part in slices]
  return jax.tree.map(lambda *leaves: sum(leaves) / parts, *results)


def assert_equal(actual, expected):
  """Raises AssertionError unless two results of `run` agree to float32 round-off."""
  scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected[1]))
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
  flat, expected_flat = (jax.tree.leaves_with_path(r[1]) for r in (actual, expected))
  assert [p for p, _ in flat] == [p for p, _ in expected_flat]
  for (path, a), (_, b) in zip(flat, expected_flat):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * max(scale, 1), err_msg=jax.tree_util.keystr(path))
