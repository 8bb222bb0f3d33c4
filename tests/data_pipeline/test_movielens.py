"""MovieLens: three forms of the same ratings, who rated them, what they rate; files with mistakes."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.data import movielens
from stmoe.data.sources import table

RATINGS = [(7, 1, 5, 30), (7, 2, 3, 10), (7, 3, 4, 20), (7, 1, 2, 40), (7, 3, 1, 50), (8, 2, 5, 60)]
FORMS = {
    'u.data': {
        'u.data': '\t'.join, 'u.user': '7|33|F|writer|10001\n8|20|M|artist|10002\n',
        'u.item': '1|Café (1995)|01-Jan-1995||http://x|0|1\n2|B|||y|1|0\n3|C|||z|1|1\n'},
    'ratings.dat': {
        'ratings.dat': '::'.join, 'users.dat': '7::F::33::writer::10001\n8::M::20::artist::10002\n',
        'movies.dat': '1::Café (1995)::Drama\n2::B::Action\n3::C::Action|Drama\n'},
    'x.inter': {
        'x.inter': '\t'.join,
        'x.user': 'user_id:token\tage:token\tgender:token\toccupation:token\n'
                  '7\t33\tF\twriter\n8\t20\tM\tartist\n',
        'x.item': 'item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tCafé\tDrama\n2\tB\tAction\n'
                  '3\tC\tAction Drama\n'},
}


@pytest.fixture
def written(tmp_path):
  """Returns a function (form, changed files) -> the path of the ratings."""
  def write(form, **changed):
    for name, content in FORMS[form].items():
      if callable(content):
        header = ['user_id:token\titem_id:token\trating:float\ttimestamp:float'] * (form == 'x.inter')
        content = '\n'.join(header + [content(map(str, row)) for row in RATINGS]) + '\n'
      content = changed.get(name.replace('.', '_'), content)
      if content:
        (tmp_path / name).write_bytes(content.encode('latin-1'))
    return str(tmp_path / form)
  return write


@pytest.mark.parametrize('form', FORMS)
def test_columns_of_every_form(written, form):
  found = movielens.columns(written(form))
  assert found['time'].tolist() == [10, 20, 30, 40, 50, 60]
  assert found['item'].tolist() == ['2', '3', '1', '1', '3', '2']
  assert found['user'].tolist() == ['7'] * 5 + ['8']
  assert found['like'].tolist() == [0, 1, 1, 0, 0, 1] and found['love'].tolist() == [0, 0, 1, 0, 0, 1]
  # Of user 7 floor(0.8 * 5) train, of user 8, with one rating, none; of all, floor(0.8 * 6).
  assert [name[0] for name in found['split']] == list('ttttvv') == [name[0] for name in found['later']]
  assert found['age'].tolist() == [33] * 5 + [20] and found['occupation'][-1] == 'artist'
  assert found['genres'].tolist() == [[1, 0], [1, 1], [0, 1], [0, 1], [1, 1], [1, 0]]


def test_a_table_of_them(written, tmp_path):
  source = table.Table(files=(written('u.data'),), numbers=('age', 'genres[2]'), categories=('user', 'item'),
                       num_ids=6, labels=('like', 'love'), group='user', split='split',
                       cache_dir=str(tmp_path))
  opened = source.open(None)
  held = opened.rows('table', 'validation', 0, False).arrays
  assert held['group'].tolist() == [0, 1] and held['ids'].tolist() == [[1, 5], [0, 4]]
  assert opened.info()['answers'] == dict(like=(0, 1), love=(0, 1))
  assert source.shapes(2)['group'] == ((2,), np.int32)


def test_ratings_alone(written):
  assert set(movielens.columns(written('u.data', u_user='', u_item=''))) == {
      'user', 'item', 'rating', 'time', 'like', 'love', 'split', 'later'}
  assert movielens.form('a/b.csv') is None


def test_a_set_that_says_less(written):
  items = 'item_id:token\tgenre:token_seq\n1\tDrama\n2\tAction\n3\tAction Drama\n'
  users = 'user_id:token\tgender:token\n7\tF\n8\tM\n'
  found = movielens.columns(written('x.inter', x_item=items, x_user=users))
  assert found['genres'].shape == (6, 2) and found['gender'][-1] == 'M' and 'age' not in found
  titles = 'item_id:token\ttitle:token\n1\ta\n2\tb\n3\tc\n'
  assert 'genres' not in movielens.columns(written('x.inter', x_item=titles))


@pytest.mark.parametrize('form, changed, said', [
    ('x.inter', dict(x_item='item:token\n1\n'), "x.item has no column 'item_id'"),
    ('u.data', dict(u_data='1\t2\t3\t4\n1\t2\n'), 'u.data, line 2: 2 cells, and the first line has 4'),
    ('u.data', dict(u_data='1\t2\t3\n'), 'a line has 3 cells; it must have 4'),
    ('u.data', dict(u_data='1\t2\tgood\t4\n'), 'column rating: could not convert .*good'),
    ('u.data', dict(u_user='7|33|F|writer|10001\n'), "u.user has no line of '8', which has ratings"),
    ('x.inter', dict(x_inter='user_id:token\titem:token\n1\t2\n'), "no column 'item_id'"),
    ('ratings.dat', dict(ratings_dat='\n'), 'ratings.dat, line 1: no cells')], ids=str)
def test_mistakes_are_one_line(written, form, changed, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    movielens.columns(written(form, **changed))
  assert '\n' not in str(caught.value)
