"""Arrays that are read where they are looked at, and arrays that are put into files."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.surgery import aside
from stmoe.surgery import layout

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def deferred(seen):
  def read(index):
    seen.append(index)
    return X[index]
  return aside.Deferred(X.shape, X.dtype, read)


def test_parts_are_read_and_nothing_else():
  seen = []
  array = deferred(seen)
  assert (len(array), array.ndim, array.size, array[1][2].shape, seen) == (2, 3, 24, (4,), [])
  np.testing.assert_array_equal(aside.fetched(array[1][2]), X[1, 2])
  np.testing.assert_array_equal(array[1].rows(1, 3, np.float16), X[1, 1:3])
  assert array[1].rows(1, 3, np.float16).dtype == np.float16
  assert seen == [(1, 2), (1, slice(1, 3)), (1, slice(1, 3))]
  with pytest.raises(IndexError):
    array[2]
  assert aside.fetched(3) == 3


def test_a_dict_fetches_what_is_asked_for():
  seen = []
  arrays = aside.Fetched({('a',): deferred(seen), ('b',): deferred(seen)})
  assert list(arrays) == [('a',), ('b',)] and not seen
  np.testing.assert_array_equal(arrays['a',], X)
  assert len(seen) == 1
  array, beside = arrays.beside({('b',): 'name'})['b',]
  assert beside == 'name' and array.shape == X.shape
  assert set(arrays | {('c',): 1}) == {('a',), ('b',), ('c',)}


def test_large_arrays_are_in_files_while_there_is_a_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(aside, 'LARGE', X.nbytes)
  made = aside.Made()
  with aside.folder(tmp_path):
    made['a',] = jnp.asarray(X)
    made |= {('b',): dict(large=X, small=X[0])}
    assert isinstance(made['a',], aside.Deferred) and isinstance(made['b',]['large'], aside.Deferred)
    assert isinstance(made['b',]['small'], np.ndarray)
    np.testing.assert_array_equal(aside.fetched(made['a',]), X)
    np.testing.assert_array_equal(made['b',]['large'].rows(1, 2, np.float32), X[1:2])
    assert [len(list(folder.iterdir())) for folder in tmp_path.iterdir()] == [2]
  assert not list(tmp_path.iterdir())
  made['c',] = X
  assert made['c',] is X


def test_slices_of_a_model_are_where_placed_takes_them_from():
  unit = dict(blocks={0: dict(w=np.arange(2)), 1: dict(v=np.arange(2))})
  model = dict(table=np.arange(3), stack=dict(segments={0: unit, 1: dict(blocks={0: dict(w=np.arange(1))})}))
  found = layout.sources(model)
  assert (found['table'].paths, found['table'].stacked) == ([('table',)], False)
  first, last = (found['stack']['segments'][i]['blocks'] for i in (0, 1))
  assert [s.paths for s in (first[0]['w'], first[1]['v'], last[0]['w'])] == [
      [('stack', 'layers', i, name) for i in numbers] for name, numbers in (('w', (0, 2)), ('v', (1, 3)),
                                                                            ('w', (4,)))]
  assert last[0]['w'].stacked


@pytest.mark.parametrize('large', [True, False])
def test_parts_put_aside_make_the_whole(large, tmp_path, monkeypatch):
  monkeypatch.setattr(aside, 'LARGE', 1 if large else 1 << 20)
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  parts = ((where, x[where]) for where in (np.s_[:, :3], np.s_[:, 3:]))
  with aside.folder(tmp_path):
    made = aside.put_parts(x.shape, x.dtype, parts)
    assert isinstance(made, aside.Deferred) == large
    np.testing.assert_array_equal(aside.part(made, (1,)), x[1])
