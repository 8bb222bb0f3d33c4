"""What a language model must do of which every block holds what is checked: train, write, and look back."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import generic
from stmoe.core import metrics

B, T, REAL = 3, 7, np.array([4, 1, 3])   # rows, tokens, and tokens of each row's prompt
WHOLE = np.full(B, T)                    # tokens of rows without padding
UNEVEN = np.array([7, 7, 2, 3])          # tokens of rows, of which half are a microbatch
DENSE = dict(layer='dense', d_ff=12)
SPARSE = dict(layer='moe', router=dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None)),
              experts=dict(name='mlp', d_ff=12, init_scale=1.0), executor='einsum')


@generic.cached
def build(**block) -> typing.Any:
  """Returns a language model of two blocks with the fields `block`."""
  fields = dict(name='lm', vocab_size=generic.VOCAB, d_model=8, num_heads=2, head_dim=4, layers=(('b', 2),))
  return lookup.recipe('model', fields)(blocks=dict(b=block), rngs=nnx.Rngs(0))


def checks(block: typing.Callable[[str, dict], dict]) -> typing.Iterator[typing.Callable[..., None]]:
  """Yields the four checks below for a kind's file, called with a name and fields.

  block: (name, fields) -> the fields of a block that holds what is checked.
  """
  for rule in (every_parameter_has_a_gradient, later_tokens_change_nothing, decoding_says_the_same,
               reports_of_microbatches_add_up):
    yield generic.check_of(block.__module__, rule,
                           lambda name, rule=rule, **fields: rule(**block(name, fields)))


def every_parameter_has_a_gradient(**block) -> None:
  """Every parameter of a model with it has a finite gradient, not 0, in training."""
  model = build(**block)
  for path, g in nnx.to_flat_state(nnx.state(_gradients(model, batch(model)), nnx.Param)):
    assert bool(jnp.all(jnp.isfinite(g[...]))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g[...] != 0)), f'the gradient of {path} is 0'


def later_tokens_change_nothing(**block) -> None:
  """In evaluation no later token changes what a model with it says of an earlier one."""
  model = build(**block)
  given = batch(model)
  late = jnp.arange(T) >= T // 2
  ids = given['decoder_input_tokens']
  changed = given | dict(decoder_input_tokens=jnp.where(late, ids % 7 + 1, ids))
  y, z = (np.asarray(_whole(model, of)) for of in (given, changed))
  np.testing.assert_allclose(y[:, :T // 2], z[:, :T // 2], rtol=1e-5, atol=1e-5,
                             err_msg='a later token changes what is said of an earlier one')
  assert not np.allclose(y[:, T // 2:], z[:, T // 2:]), 'nothing depends on the tokens'


def decoding_says_the_same(**block) -> None:
  """Decoding with a cache says what the whole text does, or `undecodable` is said."""
  model = build(**block)
  if model.decoder.undecodable() is not None:
    return
  given = batch(model)
  expected, got = np.asarray(_whole(model, given)), np.asarray(_decoded(model, given))
  for row, real in enumerate(REAL):
    np.testing.assert_allclose(got[row, real - 1:], expected[row, real - 1:], rtol=1e-4, atol=1e-4, err_msg=(
        'decoding with a cache says something else than the whole text; wanted: the attribute undecodable, '
        'which says why, or a cache of all that is read of earlier tokens'))


def reports_of_microbatches_add_up(**block) -> None:
  """Losses, loads and metrics of training are of the whole batch, in one part or in microbatches."""
  model, tokens = build(**block), float(UNEVEN.sum())
  given = batch(model, UNEVEN)
  halves = [_reported(model, {name: a[part] for name, a in given.items()}, tokens / 2)
            for part in (slice(0, 2), slice(2, 4))]
  for name, whole in _reported(model, given, tokens).items():
    merged = metrics.merge(jax.tree.map(lambda *parts: jnp.stack(parts), *(half[name] for half in halves)))
    np.testing.assert_allclose(merged.load, whole.load, rtol=1e-5, err_msg='load')
    for kind in ('losses', 'metrics'):
      for key, value in getattr(whole, kind).items():
        np.testing.assert_allclose(getattr(merged, kind)[key], value, rtol=1e-4, atol=1e-6, err_msg=(
            f'{kind} {key}; wanted: sums over tokens, divided by ctx.tokens, or as core.metrics.merge says'))


def batch(model: typing.Any, real: np.ndarray = WHOLE) -> dict[str, jax.Array]:
  """Returns texts of `real` tokens i32[B] in rows [B,T], with what parts of the model read beside them."""
  shape = len(real), T
  mask = jnp.arange(T) < jnp.asarray(real)[:, None]
  ids = jax.random.randint(jax.random.key(5), shape, 1, generic.VOCAB)
  rows = {f'given/{name}': a[:, 0] for name, a in generic.given(model, len(real)).items()}
  return rows | dict(decoder_input_tokens=ids * mask, decoder_segment_ids=mask.astype(jnp.int32),
                     decoder_positions=jnp.broadcast_to(jnp.arange(T), shape) * mask)


@jax.jit
def _reported(model, given, tokens):
  return model(given, train=True, tokens=dict(decoder=tokens))[1]


@jax.jit
def _whole(model, given):
  return model(given, alone=True)[0]


@jax.jit
def _decoded(model, given):
  """Logits [B,T,V] of a text of which every token is given; those before the end of the prompt are 0."""
  ids, rows = given['decoder_input_tokens'], jnp.arange(B)
  real = jnp.arange(4) < jnp.asarray(REAL)[:, None]
  prompt = {name: a if name.startswith('given/') else a[:, :4] * real for name, a in given.items()}
  logits, cache = model.begin(prompt, T, None)

  def step(state, _):
    logits, cache, at = state
    following, cache = model.step(ids[rows, jnp.minimum(at + 1, T - 1)], at < T - 1, cache)
    return (following, cache, at + 1), (logits, at)
  _, (logits, at) = jax.lax.scan(step, (logits, cache, jnp.asarray(REAL) - 1), length=T)
  return jnp.zeros((B, T, generic.VOCAB)).at[rows, at].set(logits, mode='drop')


@jax.jit
def _gradients(model, given):
  def value(model):
    logits, aux = model(given, key=jax.random.key(3, impl='unsafe_rbg'), train=True)
    losses = sum(jnp.sum(loss) for report in aux.values() for loss in report.losses.values())
    return jnp.sum(logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))) + losses
  return jax.grad(value, allow_int=True)(model)


