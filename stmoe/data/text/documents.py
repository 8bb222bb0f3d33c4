"""The documents in files of the user: a file, its lines, its parts, its rows or its samples are documents.

Read are UTF-8 text, JSON lines (.jsonl, .ndjson), tars of samples (WebDataset), Parquet and Arrow (.arrow, as
folders of Hugging Face `datasets` have it). Text, JSON lines and tars may be packed, as .gz or .zst. A format
that is not read is refused by its name (given.py).
"""

import functools
import os
import pathlib

from stmoe import errors
from stmoe import files
from stmoe.data import given
from stmoe.data.formats import columnar
from stmoe.data.formats import folders
from stmoe.data.formats import tar

JSON_LINES = ('.jsonl', '.ndjson')
# What data.documents may say of a file of text; any other text stands between two documents.
FILE, LINE, PARAGRAPH = 'file', 'line', 'paragraph'


def expanded(paths):
  """Returns the files that `paths` name: files, folders (all files in them), and patterns with `*`, `?`, `[`.

  Files of a folder and of a pattern are sorted by their path. Hidden files are left out. Links inside of a
  folder are followed; what two of them lead to counts once. Of folders that `datasets` saved, the files with
  rows are meant (folders.py).
  """
  found = []
  for path in map(str, paths):
    if pathlib.Path(path).is_dir():
      inside = folders.saved(path) or _within(path)
    elif any(sign in path for sign in '*?[') and not pathlib.Path(path).exists():
      inside = _sorted(pathlib.Path(pathlib.Path(path).anchor or '.'), path.lstrip('/'))
    else:
      inside = [path]
    if not inside:
      raise errors.UserError(f'data.files: no file in {path!r}')
    found += inside
  return found


def divided(paths):
  """Returns (the files that `paths` name, those held out of them as they were saved, or []).

  Raises UserError where there is no path, or none of such a name.
  """
  if not paths:
    raise errors.UserError('data.files is empty: task text needs --config.data.files=FILE (comma separated)')
  paths = [str(path) for path in paths]
  splits = folders.splits(paths[0]) if len(paths) == 1 else {}
  if not splits:
    return expanded(paths), []
  if 'train' not in splits:
    raise errors.UserError(f'data.files: {paths[0]!r} has no split train (there are: {", ".join(splits)}); '
                           f'nearest: --config.data.files={next(iter(splits.values()))}')
  held = [splits['validation']] if 'validation' in splits else []
  return expanded([splits['train']]), expanded(held)


def _within(folder):
  """The files in a folder and in folders in it, not hidden, sorted as texts."""
  found, seen = [], set()
  for here, inside, names in os.walk(folder, followlinks=True):
    known = (real := os.path.realpath(here)) in seen
    seen.add(real)
    inside[:] = [] if known else sorted(name for name in inside if not name.startswith('.'))
    paths = [pathlib.Path(here, name) for name in names if not (known or name.startswith('.'))]
    found += [str(path) for path in paths if path.is_file() and not folders.beside(path)]
  return sorted(found)


def _sorted(root, pattern):
  """The files, not hidden, that `pattern` names below `root`, sorted as texts."""
  hidden = lambda path: any(part.startswith('.') and part != '..' for part in path.relative_to(root).parts)
  try:
    return sorted(str(path) for path in root.glob(pattern)
                  if path.is_file() and not hidden(path) and not folders.beside(path))
  except ValueError as error:
    raise errors.UserError(f'data.files: {pattern!r} is no pattern: {error}') from None


def read(path, column='', apart=''):
  """Returns the documents of file `path`, a list; see `each`."""
  return list(each(path, column, apart))


def each(path, column='', apart='', count=lambda read: None):
  """Gives the documents of file `path`, bytes, UTF-8, none empty; one at a time is held in memory.

  Args:
    column: the field of a row or a sample that holds its text; '' = `text`, of a sample its member .txt.
    apart:  what a document of a file of text is: FILE or '', LINE, PARAGRAPH (blank lines stand between two),
      or the text that stands between two. Rows are documents by themselves.
    count:  called with numbers of bytes of the file that were read; of all of them in the end.
  """
  name = given.unpacked_name(path)
  if name.endswith((columnar.PARQUET, columnar.ARROW)):
    found = columnar.texts(path, column or columnar.FIELD, count)
  elif name.endswith(tar.TAR):
    found = tar.texts(path, column, count)
  elif name.endswith(JSON_LINES):
    found = _json(path, column or columnar.FIELD, count)
  elif column:
    raise errors.UserError(f'data.field={column!r}, but {str(path)!r} has no rows; it is for '
                           f'{", ".join((*JSON_LINES, tar.TAR, columnar.ARROW))} and {columnar.PARQUET}')
  else:
    found = _parts(path, apart, count)
  return filter(None, found)


def _parts(path, apart, count):
  near = errors.nearest(apart, (FILE, LINE, PARAGRAPH))
  if apart.isalpha() and near and apart not in (FILE, LINE, PARAGRAPH):
    raise errors.UserError(f'data.documents={apart!r} would be a text between two documents{near}')
  if apart in ('', FILE):
    return iter([given.content(path, count=count)])
  if apart == LINE:
    return (line.removesuffix(b'\n').removesuffix(b'\r') for _, line in _lines(path, count))
  if apart == PARAGRAPH:
    return (part.strip(b'\n') for part in _split(path, b'\n\n', count, paragraphs=True))
  return _split(path, apart.replace('\\n', '\n').replace('\\t', '\t').encode(), count)


def _lines(path, count):
  """Gives (number, line with its end) of file `path`."""
  at = 0
  with given.opened(path, count=count) as file:
    for number, line in enumerate(file, 1):
      yield number, given.utf8(line, path, at=at)
      at += len(line)


def _split(path, apart, count, paragraphs=False):
  """Gives the parts of a file between which `apart` stands; with `paragraphs` \\r\\n counts as \\n."""
  left, at = bytearray(), 0
  with given.opened(path, count=count) as file:
    chunks = iter(functools.partial(file.read, files.CHUNK), b'')
    for chunk in _unix(chunks) if paragraphs else chunks:
      start, first = 0, max(len(left) - len(apart) + 1, 0)           # `apart` does not begin before
      left += chunk
      while (end := left.find(apart, first)) >= 0:
        yield given.utf8(bytes(left[start:end]), path, at=at + start)
        start = first = end + len(apart)
      del left[:start]
      at += start
  yield given.utf8(bytes(left), path, at=at)


def _unix(chunks):
  """Gives the same bytes with \\n for \\r\\n, which may stand across two chunks."""
  kept = b''
  for chunk in chunks:
    chunk = kept + chunk
    kept = chunk[-1:] if chunk.endswith(b'\r') else b''
    yield chunk.removesuffix(kept).replace(b'\r\n', b'\n')
  yield kept


def _json(path, column, count):
  """Gives the texts of the objects of a file of JSON lines."""
  for number, line in _lines(path, count):
    line = line.decode().removeprefix(given.MARK if number == 1 else '')
    if not line.strip():
      continue
    try:
      row = files.parse_json(line)
    except ValueError as error:
      raise errors.UserError(f'data.files: {path}, line {number} {error}') from error
    yield columnar.of_object(row, column, f'{path}, line {number}').encode()
