"""What passes between layers and routers: contexts of a batch, regrouped by one function; statistics."""

import ast
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import contract

B, T = 2, 4
NAMES = {field.name for field in dataclasses.fields(contract.Context) if field.metadata.get('per_token')}
BATCH = dict(decoder_input_tokens=jnp.arange(8).reshape(B, T),
             decoder_segment_ids=jnp.array([[1, 1, 2, 0]] * B),
             decoder_positions=jnp.array([[0, 1, 0, 0]] * B))
GIVEN = {'given/language': jnp.array([5, 6]), 'given/similarity': jnp.arange(8).reshape(B, 2, 2),
         'decoder_given/kind': jnp.arange(8).reshape(B, T), 'encoder_given/kind': jnp.zeros((B, 9))}


def context(**fields):
  known = dict(step=jnp.int32(0), tokens=jnp.float32(6))
  return contract.Context.of_batch(BATCH | GIVEN, 'decoder', **known | fields)


def test_a_context_of_a_batch():
  key = jax.random.key(0)
  ctx = context(key=key)
  assert ctx.mask.tolist() == [[True, True, True, False]] * B and ctx.ids is BATCH['decoder_input_tokens']
  shapes = {name: a.shape for name, a in ctx.given.items()}
  assert shapes == dict(language=(B, 1), similarity=(B, 1, 2, 2), kind=(B, T))     # of rows, of tokens
  plain = contract.Context(*[None] * 6, key=key)
  assert (jax.random.key_data(ctx.key) == jax.random.key_data(plain.fold('decoder').key)).all()


def test_a_batch_without_rows_is_refused():
  batch = {name: array[:0] for name, array in BATCH.items()}
  with pytest.raises(errors.UserError, match=r'there are no tokens: \[0, 4\]'):
    contract.Context.of_batch(batch, 'decoder', step=jnp.int32(0), tokens=jnp.float32(1))


def test_every_array_of_tokens_is_regrouped_and_moved_the_same_way():
  ctx = context().group(4, 2)
  for name in NAMES:
    np.testing.assert_array_equal(getattr(ctx, name), getattr(context(), name).reshape(4, 2))
  assert ctx.given['language'].tolist() == [[5, 5], [5, 5], [6, 6], [6, 6]]
  assert ctx.given['kind'].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert ctx.given['similarity'].shape == (4, 2, 2, 2)
  np.testing.assert_array_equal(ctx.given['similarity'][2, 1], GIVEN['given/similarity'][1])
  turned = context().each(lambda a: a[:, ::-1])
  assert turned.given['kind'][0].tolist() == [3, 2, 1, 0] == turned.ids[0].tolist()
  alone = context().group(8, 1)
  assert alone.given['language'].shape == (8, 1)
  again = alone.group(2, 4)
  assert again.given['language'].tolist() == [[5] * 4, [6] * 4]


def test_other_tokens_in_place_of_these():
  channels = context().instead(jnp.array([[True] * 3, [False] * 3]), jnp.float32(3), vocab_size=3)
  assert channels.ids.tolist() == [[0, 1, 2]] * 2 == channels.positions.tolist()
  assert channels.segments.tolist() == [[1] * 3, [0] * 3] and channels.tokens == 3
  assert channels.group(2, 3).given['language'].tolist() == [[5] * 3, [6] * 3]
  rows = context().instead(jnp.ones((1, 2), bool), jnp.float32(2))   # rows are the tokens of one group
  assert rows.given['language'].tolist() == [[5, 6]] and 'kind' not in rows.given


@pytest.mark.parametrize('make, parts, whole', [
    (contract.total, [[1.0, 2.0], [3.0, 4.0]], [4.0, 6.0]),
    (contract.largest, [[1.0, 9.0], [3.0, 4.0]], [3.0, 9.0]),
    (lambda x: contract.mean(x, jnp.array([1.0, 4.0])), [[1.0, 8.0], [5.0, 0.0]], [3.0, 1.0])])
def test_statistics_are_put_together_as_they_say(make, parts, whole):
  each = [make(jnp.array(part)) for part in parts]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *each)
  assert stacked.together().value.tolist() == whole
  assert contract.mean(jnp.ones(2), jnp.zeros(2)).value.tolist() == [0.0, 0.0]


def lists_of_arrays(tree):
  """Yields the lines of calls and dicts that name all arrays of tokens, and of tuples of their names."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      named = {keyword.arg for keyword in node.keywords}
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
      named = {e.value for e in node.elts if isinstance(e, ast.Constant)}
    else:
      named = set()
    if NAMES - {'ids'} <= named:
      yield node.lineno


def test_nobody_lists_the_arrays_of_tokens_by_hand():
  assert NAMES == {'mask', 'ids', 'positions', 'segments'}
  root = pathlib.Path(contract.__file__).parents[1]
  found = [f'{path.relative_to(root)}:{line}' for path in sorted(root.rglob('*.py'))
           for line in lists_of_arrays(ast.parse(path.read_text(encoding='utf-8')))]
  # A context is made in two functions, of a batch and of numbers.
  assert [line.partition(':')[0] for line in found] == ['core/contract.py'] * 2, found
  assert list(lists_of_arrays(ast.parse('c.replace(mask=m, ids=i, positions=p, segments=s)'))) == [1]


def test_commit_reads_no_metric():
  root = pathlib.Path(contract.__file__).parents[1]
  for path in sorted(root.rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.FunctionDef) and node.name == 'commit':
        read = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
        assert 'metrics' not in read, path
