"""What every strategy of decoding must do."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import generic
from stmoe.conform import in_model

LENGTH, END = 6, 1


def writes_texts(name: str, **fields) -> None:
  """It returns ids i32[B,length] of the vocabulary; behind a text's end, where it knows one, all are 0."""
  ids = np.asarray(_written(name, fields, 0))
  wanted, found = f'int32[{in_model.B}, {LENGTH}]', f'{ids.dtype}{list(ids.shape)}'
  assert found == wanted, f'it returned {found}; wanted: {wanted}'
  assert ids.min() >= 0 and ids.max() < generic.VOCAB, f'ids are {ids.min()} to {ids.max()}'
  for row in ids:
    ends = np.flatnonzero(row == END)
    assert not _ends(name) or not ends.size or not row[ends[0] + 1:].any(), 'a text goes on behind its end'


def the_same_key_writes_the_same(name: str, **fields) -> None:
  """The same key gives the same texts."""
  np.testing.assert_array_equal(_written(name, fields, 3), _written(name, fields, 3))


def _ends(name):
  """Its fields of the ids that end a text."""
  return dict(eos_id=END) if 'eos_id' in lookup.fields('strategy', name) else {}


def _written(name, fields, seed):
  model = in_model.build(**in_model.SPARSE)
  given, real = in_model.batch(model), jnp.arange(4) < jnp.asarray(in_model.REAL)[:, None]
  prompt = {key: a[:, :4] * real for key, a in given.items()}
  strategy = lookup.constructor('strategy', name)(**fields, **_ends(name))
  strategy.check(model)
  return jax.jit(lambda prompt, key: strategy(model, prompt, LENGTH, key))(prompt, jax.random.key(seed))
