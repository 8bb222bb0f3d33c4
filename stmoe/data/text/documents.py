"""The documents in files of the user: a file, its lines, its parts, or its rows are documents.

Read are UTF-8 text, JSON lines (.jsonl, .ndjson) and Parquet. Text and JSON lines may be packed, as .gz or
.zst. A format that is not read is refused by its name (given.py).
"""

import pathlib

from stmoe import errors
from stmoe import files
from stmoe.data import given

FIELD = 'text'                           # of a row that holds its document
ROWS = ('.jsonl', '.ndjson')
PARQUET = '.parquet'
# What data.documents may say of a file of text; any other text stands between two documents.
FILE, LINE, PARAGRAPH = 'file', 'line', 'paragraph'


def expanded(paths, field='data.files'):
  """Returns the files that `paths` name: files, folders (all files in them), and patterns with `*`, `?`, `[`.

  Files of a folder and of a pattern are sorted by their path. Hidden files are left out.
  """
  found = []
  for path in map(str, paths):
    if pathlib.Path(path).is_dir():
      inside = _sorted(pathlib.Path(path), '**/*')
    elif any(sign in path for sign in '*?[') and not pathlib.Path(path).exists():
      inside = _sorted(pathlib.Path(pathlib.Path(path).anchor or '.'), path.lstrip('/'))
    else:
      inside = [path]
    if not inside:
      raise errors.UserError(f'{field}: no file in {path!r}')
    found += inside
  return found


def _sorted(root, pattern):
  """The files, not hidden, that `pattern` names below `root`, sorted as texts."""
  hidden = lambda path: any(part.startswith('.') and part != '..' for part in path.relative_to(root).parts)
  try:
    return sorted(str(path) for path in root.glob(pattern) if path.is_file() and not hidden(path))
  except ValueError as error:
    raise errors.UserError(f'data.files: {pattern!r} is no pattern: {error}') from None


def read(path, column='', apart=''):
  """Returns the documents of file `path`, a list of bytes, UTF-8, none empty.

  Args:
    column: the field of a row that holds its text; '' = FIELD.
    apart:  what a document of a file of text is: FILE or '', LINE, PARAGRAPH (blank lines stand between two),
      or the text that stands between two. Rows are documents by themselves.
  """
  name = given.unpacked_name(path)
  if name.endswith(PARQUET):
    return _parquet(path, column or FIELD)
  if name.endswith(ROWS):
    return _json(path, column or FIELD)
  if column:
    raise errors.UserError(f'data.field={column!r}, but {str(path)!r} has no rows; it is for '
                           f'{", ".join(ROWS)} and {PARQUET}')
  return [part for part in _parts(given.content(path), apart) if part]


def _parts(content, apart):
  if apart in ('', FILE):
    return [content]
  if apart == LINE:
    return [line.removesuffix(b'\r') for line in content.split(b'\n')]
  text = content.decode()
  if apart == PARAGRAPH:
    text, apart = text.replace('\r\n', '\n'), '\n\n'
    return [part.strip('\n').encode() for part in text.split(apart)]
  return [part.encode() for part in text.split(apart.replace('\\n', '\n').replace('\\t', '\t'))]


def _json(path, column):
  """The texts of the objects of a file of JSON lines."""
  found = []
  for number, line in given.lines(path, 'data.files'):
    try:
      row = files.parse_json(line)
    except ValueError as error:
      raise errors.UserError(f'data.files: {path}, line {number} {error}') from error
    if not isinstance(row.get(column), str):
      texts = [key for key, value in row.items() if isinstance(value, str)]
      others = f'its texts: {", ".join(texts) or "none"}'
      pairs = '; pairs are read by data.task=pairs or jsonl' if {'inputs', 'targets'} <= set(texts) else ''
      raise errors.UserError(f'data.files: {path}, line {number} has no text {column!r} ({others}{pairs})'
                             f'{_nearest(column, texts)}')
    found.append(row[column].encode())
  return [text for text in found if text]


def _nearest(column, texts):
  """The end of a message: which of the fields `texts` is most likely meant, if there are any."""
  meant = errors.nearest(column, texts, 1).removeprefix('; nearest: ') or next(iter(texts), '')
  return f'; nearest: --config.data.field={meant}' if meant else ''


def _parquet(path, column):
  """The texts of a column of a Parquet file."""
  given.arrow(path, 'data.files')
  from pyarrow import lib
  from pyarrow import parquet
  try:
    with parquet.ParquetFile(path) as table:
      columns = {field.name: field.type for field in table.schema_arrow}
      texts = [name for name, kind in columns.items() if str(kind) in ('string', 'large_string')]
      if column not in texts:
        raise errors.UserError(f'data.files: {str(path)!r} has no column of texts {column!r} (there are: '
                               f'{", ".join(texts) or "none"}){_nearest(column, texts)}')
      return _rows(path, table, column)
  except FileNotFoundError as error:
    raise given.absent(path, 'data.files') from error
  except (OSError, lib.ArrowException) as error:
    said = ' '.join(str(error).split())[:160]
    raise errors.UserError(f'data.files: cannot read {str(path)!r}: {said}') from error


def _rows(path, table, column):
  """The texts of a column of an open Parquet file, none empty; UserError where they are unlikely many."""
  most, size, found = max(given.RATIO * pathlib.Path(path).stat().st_size, given.ROOM), 0, []
  for batch in table.iter_batches(columns=[column]):
    found += [text.encode() for text in batch.column(0).to_pylist() if text]
    size += batch.nbytes
    if size > most:
      raise errors.UserError(f'data.files: cannot read {str(path)!r}: it holds more than {most:,} bytes')
  return found
