"""Behaviours: histories end before their rows, items of a session are a row, ids are those of training."""

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.data.sources import behaviours
from stmoe.data.sources import drawn_behaviours

CSV = '''user,item,time,like,price,word,part
b,x,1,1,1,red,train
a,x,1,1,3,red,train
a,y,2,0,5,red,train
a,z,3,1,3,blue,train
a,x,3,1,1,red,train
a,q,9,1,3,green,validation
b,z,2,,3,red,train
b,y,3,0,5,blue,validation
'''


@pytest.fixture
def opened(tmp_path):
  (tmp_path / 'a.csv').write_text(CSV)

  def make(**fields):
    source = behaviours.Behaviours(**dict(
        files=(str(tmp_path / 'a.csv'),), num_items=4, length=2, split='part',
        cache_dir=str(tmp_path)) | fields)
    rows = source.open(None)
    found = [rows.rows('behaviours', split, 0, True).arrays for split in ('train', 'validation')]
    for part in found:
      shapes = source.shapes(len(part['items']))
      assert {name: (x.shape, x.dtype) for name, x in part.items()} == shapes
    return [jax.tree.map(np.ndarray.tolist, part) for part in found]
  return make


def test_rows_of_one_item(opened):
  train, held = opened()
  # Users a and b by time; ids x 1, y 2, z 3. The event of b without a label is no row.
  assert train['items'] == [[1], [2], [3], [1], [1]] and train['group'] == [0, 0, 0, 0, 1]
  assert train['values'] == [[1], [0], [1], [1], [1]]
  # What is of the same time is no history: both rows of time 3 see x of time 1, the only chosen one.
  assert train['history'] == [[0, 0], [1, 0], [1, 0], [1, 0], [0, 0]]
  assert train['history_weights'][1] == [1, 0] and train['part'] == [0] * 5
  # The latest comes first; q is not in training; what has no label was not chosen.
  assert held['items'] == [[0], [2]] and held['history'] == [[1, 3], [1, 0]] and held['part'] == [1, 0]


def test_rows_of_sessions(opened):
  train, _ = opened(items_per_row=3, numbers=('price',), history_numbers=('price', 'time'), query='word',
                    num_queries=3, parts=(0,))
  assert train['items'] == [[1, 2, 3], [1, 0, 0], [1, 0, 0]]
  assert train['weights'] == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
  assert train['history'] == [[0, 0], [1, 0], [0, 0]] and train['part'] == [0, 1, 0]
  assert train['query'] == [2, 2, 2]                                 # of the first item; blue is 1
  np.testing.assert_allclose(np.array(train['features'])[0, :, 0] * np.std([1, 3, 5, 3, 1, 3]),
                             np.array([3, 5, 3]) - np.mean([1, 3, 5, 3, 1, 3]), rtol=1e-6)
  past = np.array(train['history_features'])                         # of x, price 3 and time 1
  deviation = np.std([[1, 3, 5, 3, 1, 3], [1, 1, 2, 3, 3, 2]], axis=1)
  np.testing.assert_allclose(past[1, 0], [3 - 8 / 3, 1 - 2] / deviation, rtol=1e-5)
  assert not past[[0, 2]].any() and not past[1, 1].any()


@pytest.mark.parametrize('fields, said', [
    (dict(num_items=3), 'data.num_items=3, but there are 4 ids; nearest: data.num_items=4'),
    (dict(query='word', num_queries=1), 'nearest: data.num_queries=3'),
    (dict(label='price'), 'column price holds 3; it must say by 0 and 1'),
    (dict(item='thing'), "no column 'thing'")], ids=str)
def test_mistakes_are_one_line(opened, fields, said):
  with pytest.raises(errors.UserError, match=said):
    opened(**fields)


def test_drawn_users(tmp_path):
  make = lambda **fields: drawn_behaviours.DrawnBehaviours(
      num_users=300, num_held_out=60, rows_per_user=2, cache_dir=str(tmp_path), **fields).open(None)
  rows = lambda opened, split: opened.rows('drawn_behaviours', split, 0, True).arrays
  train, held, other = rows(make(), 'train'), rows(make(), 'validation'), rows(make(problem=1), 'train')
  assert train['items'].shape == (600, 8) and held['items'].shape == (120, 8)
  assert not set(train['group']) & set(held['group'])
  lengths = train['history_weights'][::2].sum(1)
  assert 4.5 < lengths.mean() < 6.5 and (lengths == 0).any()         # a few are cut at 20
  np.testing.assert_array_equal(train['part'][::2], lengths > 2)
  assert (train['history'][train['history_weights'] > 0] > 0).all()
  assert (other['items'] != train['items']).any()
  # Items that a user has clicked are clicked more often.
  again = np.array([np.isin(row, past) for row, past in zip(train['items'], train['history'])])
  assert train['values'][again].mean() > train['values'].mean() + 0.1
