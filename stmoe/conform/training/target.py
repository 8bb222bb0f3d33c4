"""What every target must do: sums over parts of a batch are those of the whole."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import targets
from stmoe.conform import generic

B, T, N, V = 4, 6, 3, 11


def says_what_it_is(name: str, **fields) -> None:
  """`kinds`, `measures`, `passes` and `run` are there; eval/loss is, and lower is better."""
  target = _build(name, **fields)
  assert target.kinds and set(target.kinds) <= set(_BATCHES), (
      f'kinds={target.kinds!r}: wanted some of {", ".join(_BATCHES)}')
  assert targets.first(target.measures, 'loss/') and targets.first(target.measures, 'eval/') == 'eval/loss', (
      'measures: the first of loss/ is what training makes smaller, the first of eval/ is eval/loss')
  assert target.measures['eval/loss'].better == 'lower', 'of eval/loss lower is better'
  assert target.passes >= 1 and isinstance(target.run, str), 'passes and run'


def parts_add_up(name: str, **fields) -> None:
  """Losses and sums of two parts of a batch, of the whole batch's counts, add up to the whole's."""
  target = _build(name, **fields)
  for outputs, batch in _examples(target):
    counts = target.counts(batch)
    parts = [_cut((outputs, batch), slice(0, 1)), _cut((outputs, batch), slice(1, B))]
    _sum([target.loss(*part, counts) for part in parts], target.loss(outputs, batch, counts))
    _sum([target.judge(*part) for part in parts], target.judge(outputs, batch))


def gradients_are_finite(name: str, **fields) -> None:
  """The loss has a finite gradient, and of a batch without targets the loss and its gradient are 0."""
  target = _build(name, **fields)
  for outputs, batch in _examples(target):
    empty = batch | {key: jnp.zeros_like(a) for key, a in batch.items() if 'weights' in key}
    for data, something in ((batch, True), (empty, False)):
      value, grad = jax.value_and_grad(
          lambda x, data=data: target.loss(x, data, target.counts(data))[0])(outputs)
      assert bool(jnp.isfinite(value)) and bool(jnp.all(jnp.isfinite(grad))), 'not finite'
      assert bool(jnp.any(grad != 0)) == something, 'the gradient is 0' if something else 'it is not 0'


def metrics_are_measures(name: str, **fields) -> None:
  """`metrics` gives finite numbers, eval/loss among them, under names of `measures`."""
  target = _build(name, **fields)
  for outputs, batch in _examples(target):
    totals = target.judge(outputs, batch) | dict(weight=jnp.sum(target.weights(batch)))
    numbers = target.metrics(jax.tree.map(np.float64, totals))
    assert 'eval/loss' in numbers, f'no eval/loss in {sorted(numbers)}'
    for key, value in numbers.items():
      assert key.startswith('eval/') and np.isfinite(value), f'{key}={value}'


def _build(name, **fields):
  make = lookup.constructor('target', name)
  return make(**generic.known(make, dict(inner=lookup.constructor('target', 'ids'), run='') | fields)
              if '__init__' in vars(make) else {})


def _values():
  values = (jax.random.uniform(jax.random.key(1), (B, N)) > 0.5).astype(jnp.float32)
  return _draw(N), dict(values=values, weights=jnp.ones((B, N)).at[1, 2].set(0))


def _ids():
  ids = jax.random.randint(jax.random.key(2), (B, T), 1, V)
  weights = (jnp.arange(T) < jnp.array([[6], [2], [5], [1]])).astype(jnp.int32)
  return _draw(T, V), dict(decoder_target_tokens=ids, decoder_loss_weights=weights)


def _labels():
  return _draw(1, V), dict(labels=jnp.array([[1], [4], [0], [2]]), weights=jnp.ones((B, 1)))


# What a target judges -> (outputs [B,...], a batch) of it. Positions are ids of another vocabulary.
_BATCHES = dict(values=_values, ids=_ids, labels=_labels, positions=_ids)


def _draw(*shape):
  return jax.random.normal(jax.random.key(0), (B, *shape))


def _examples(target):
  for kind in target.kinds:
    yield _BATCHES[kind]()


def _cut(tree, rows):
  return jax.tree.map(lambda a: a[rows], tree)


def _sum(parts, whole):
  jax.tree.map(lambda w, *each: np.testing.assert_allclose(sum(each), w, rtol=1e-5, atol=1e-6), whole, *parts)
