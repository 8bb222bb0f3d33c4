"""MovieLens ratings as columns of a table, from the files of the user.

A set is named by its file of ratings. Its other files are looked for in the same folder.

  u.data        with u.item and u.user       MovieLens-100K, apart by tabs and |
  ratings.dat   with movies.dat, users.dat   MovieLens-1M and -10M, apart by ::
  NAME.inter    with NAME.item, NAME.user    any set in RecBole's form: tabs, and a header with types
"""

import pathlib
from typing import NamedTuple

import numpy as np

from stmoe import errors
from stmoe import files

LIKED, LOVED = 4, 5                      # ratings from which a film is liked, and loved
SHARE = 0.8                              # of the ratings train: of every user, or of all, the first in time
RATED = ('user', 'item', 'rating', 'time')
ABOUT_USERS = ('age', 'gender', 'occupation')


class Form(NamedTuple):
  """How a set is written: names of its other files, what is between cells, and the columns of each file."""
  items: str
  users: str
  separators: tuple[str, str, str]       # of ratings, items, users
  columns: dict[str, int | str]          # name -> place in a line, or name in the header
  genres: int | tuple[str, ...]          # the first of many flags, the column with all names, or names of it
  joined: str                            # between the names of genres; '' = flags


FORMS = {
    'u.data': Form('u.item', 'u.user', ('\t', '|', '|'),
                   dict(user=0, item=1, rating=2, time=3, age=1, gender=2, occupation=3), 5, ''),
    'ratings.dat': Form('movies.dat', 'users.dat', ('::', '::', '::'),
                        dict(user=0, item=1, rating=2, time=3, gender=1, age=2, occupation=3), 2, '|'),
    '.inter': Form('.item', '.user', ('\t', '\t', '\t'),
                   dict(user='user_id', item='item_id', rating='rating', time='timestamp', age='age',
                        gender='gender', occupation='occupation'), ('class', 'genre'), ' '),
}


def form(path: str) -> Form | None:
  """Returns the Form of the set whose ratings are in file `path`, None for any other file."""
  named = pathlib.Path(path)
  return FORMS.get(named.name, FORMS.get(named.suffix))


def columns(file: str) -> dict:
  """Returns dict name -> array of the N ratings of the set whose ratings are in `file`, in order of time.

  user, item str[N]; rating f64[N]; time f64[N]; like, love f64[N], 1 from a rating of 4, and of 5, on.
  split str[N]: 'train' for the first floor(0.8 n) of a user's n ratings in time, then 'validation'.
  later str[N]: 'train' for the first 80 % of all ratings in time.
  Of files of items and users, where they are there and say it: genres f64[N,G], age f64[N], gender and
  occupation str[N].
  """
  path, known = pathlib.Path(file), form(file)
  assert known is not None, file
  rated = _cells(path, known.separators[0], known.columns, RATED)
  number = lambda name: _numbers(path, name, rated[name])
  rating, time = number('rating'), number('time')
  order = np.argsort(time, kind='stable')
  found = dict(user=rated['user'], item=rated['item'], rating=rating, time=time,
               like=(rating >= LIKED) * 1.0, love=(rating >= LOVED) * 1.0)
  found = {name: column[order] for name, column in found.items()}
  found['split'] = _first(found['user'])
  found['later'] = _first(np.zeros(len(order), int))
  users, items = (_beside(path, name) for name in (known.users, known.items))
  if users.is_file():
    about = _cells(users, known.separators[2], known.columns, ABOUT_USERS, first='user')
    row = _matched(users, about.pop('key'), found['user'])
    about |= {name: _numbers(users, name, about[name]) for name in ('age',) if name in about}
    found |= {name: column[row] for name, column in about.items()}
  names, genres = _genres(items, known) if items.is_file() else (None, None)
  if genres is not None:
    found['genres'] = genres[_matched(items, names, found['item'])]
  return found


def _beside(path, name):
  """The path of another file of the set with ratings `path`."""
  return path.with_suffix(name) if name.startswith('.') else path.with_name(name)


def _lines(path, separator):
  """The lines of a file as lists of cells; old sets are written in Latin-1."""
  try:
    content = files.read_bytes(path)
  except (OSError, errors.Damaged) as error:
    reason = error.reason if isinstance(error, errors.Damaged) else error.strerror
    raise errors.UserError(f'data.files: cannot read {path}: {reason}') from error
  try:
    text = content.decode()
  except UnicodeDecodeError:
    text = content.decode('latin-1')
  lines = [line.split(separator) for line in text.split('\n') if line.strip()]
  wrong = next((number for number, line in enumerate(lines, 1) if len(line) != len(lines[0])), None)
  if not lines or wrong:
    raise errors.UserError(f'{path}, line {wrong or 1}: {len(lines[wrong - 1]) if wrong else "no"} cells, '
                           f'and the first line has {len(lines[0]) if lines else "none"}')
  return lines


def _cells(path, separator, places, names, first=None):
  """Dict name -> str[n] of the columns `names` of a file.

  With `first` the file is about users: `key` is the column of `first`, and other columns may be absent.
  """
  lines, places = _lines(path, separator), dict(places)
  if isinstance(places['user'], str):    # a header: 'user_id:token'
    header = [cell.partition(':')[0].strip() for cell in lines.pop(0)]
    wanted = [places[name] for name in ([first] if first else names)]
    missing = next((name for name in wanted if name not in header), None)
    if missing:
      raise errors.UserError(f'{path} has no column {missing!r}{errors.nearest(missing, header)} (it has: '
                             f'{", ".join(header)})')
    places = {name: header.index(place) for name, place in places.items() if place in header}
    names = [name for name in names if name in places]
  width = len(lines[0]) if lines else 0
  last = max((places[name] for name in names), default=-1)
  if last >= width:
    raise errors.UserError(f'{path}: a line has {width} cells; it must have {last + 1}')
  column = lambda at: np.array([line[at].strip() for line in lines])
  found = {name: column(places[name]) for name in names}
  return found if first is None else found | dict(key=column(places[first]))


def _genres(path, known):
  """(names str[n] of items, f64[n,G] their genres; None where the header names none)."""
  lines, at = _lines(path, known.separators[1]), known.genres
  key = 0
  if isinstance(at, tuple):
    header = [cell.partition(':')[0].strip() for cell in lines.pop(0)]
    if known.columns['item'] not in header:
      raise errors.UserError(f'{path} has no column {known.columns["item"]!r} (it has: {", ".join(header)})')
    key, at = header.index(known.columns['item']), next((header.index(n) for n in at if n in header), None)
  names = np.array([line[key].strip() for line in lines])
  if at is None:
    return names, None
  if not known.joined:
    return names, np.array([[float(cell) for cell in line[at:]] for line in lines])
  of_items = [set(filter(None, line[at].strip().split(known.joined))) for line in lines]
  kinds = sorted(set().union(*of_items))
  return names, np.array([[float(kind in of_item) for kind in kinds] for of_item in of_items])


def _numbers(path, name, cells):
  try:
    return cells.astype(np.float64)
  except ValueError as error:
    raise errors.UserError(f'{path}: column {name}: {error}') from error


def _matched(path, names, wanted):
  """I64[N], the row of `names` [n] for each of `wanted` [N]."""
  row = {name: i for i, name in enumerate(names)}
  missing = next((name for name in wanted if name not in row), None)
  if missing is not None:
    raise errors.UserError(f'{path} has no line of {str(missing)!r}, which has ratings')
  return np.array([row[name] for name in wanted])


def _first(users):
  """Str[N]: 'train' for the first floor(0.8 n) of the n rows of each of `users` [N], else 'validation'."""
  _, user = np.unique(users, return_inverse=True)
  order = np.argsort(user, kind='stable')
  count = np.bincount(user)
  place = np.empty(len(user), int)
  place[order] = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
  return np.where(place < np.floor(SHARE * count)[user], 'train', 'validation')
