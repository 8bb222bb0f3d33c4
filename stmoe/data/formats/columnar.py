"""Rows whose text is a field: objects of JSON, and columns of Parquet and of Arrow files."""

import contextlib
import pathlib

from stmoe import errors
from stmoe.data import given

FIELD = 'text'                           # of a row that holds its document
PARQUET, ARROW = '.parquet', '.arrow'
MANY = 1024                              # rows of Parquet that are read at once
FILE_SIGN = b'ARROW1'                    # of an Arrow file; without, it is a stream


def of_object(row, column, where):
  """Returns the text in field `column` of the dict `row`; a UserError that names `where` if there is none."""
  if isinstance(row.get(column), str):
    return row[column]
  found = [key for key, value in row.items() if isinstance(value, str)]
  others = f'its texts: {", ".join(found) or "none"}'
  pairs = '; pairs are read by data.task=pairs or jsonl' if {'inputs', 'targets'} <= set(found) else ''
  raise errors.UserError(f'data.files: {where} has no text {column!r} ({others}{pairs})'
                         f'{nearest(column, found)}')


def nearest(column, found):
  """Returns the end of a message: the one of the fields `found` that is likely meant, '' without any."""
  meant = errors.nearest(column, found, 1).removeprefix('; nearest: ') or next(iter(found), '')
  return f'; nearest: --config.data.field={meant}' if meant else ''


def texts(path, column, count=lambda read: None):
  """Gives the texts, bytes, of a column of a Parquet or Arrow file, read by pyarrow; no row more is held.

  Unlikely many bytes are a UserError: more than given.RATIO times the file.

  Args:
    count: called with shares of the size of the file, as rows are read.
  """
  given.arrow(path, 'data.files')
  from pyarrow import lib
  parquet = given.unpacked_name(path).endswith(PARQUET)
  try:
    size = pathlib.Path(path).stat().st_size
    with (_parquet if parquet else _arrow)(path) as (schema, batches):
      _check(path, schema, column)
      yield from _limited(path, batches(column), max(given.RATIO * size, given.ROOM))
    count(size)
  except FileNotFoundError as error:
    raise given.absent(path, 'data.files') from error
  except (OSError, ValueError, lib.ArrowException) as error:
    said = ' '.join(str(error).split())[:160]
    raise errors.UserError(f'data.files: cannot read {str(path)!r}: {said}') from error


def _check(path, schema, column):
  kinds = {field.name: str(field.type) for field in schema}
  found = [name for name, kind in kinds.items() if kind in ('string', 'large_string')]
  if column not in found:
    raise errors.UserError(f'data.files: {str(path)!r} has no column of texts {column!r} (there are: '
                           f'{", ".join(found) or "none"}){nearest(column, found)}')


def _limited(path, columns, most):
  """The texts in arrays of texts; UserError above `most` bytes."""
  size = 0
  for array in columns:
    size += array.nbytes
    if size > most:
      raise errors.UserError(f'data.files: cannot read {str(path)!r}: it holds more than {most:,} bytes')
    array.validate(full=True)            # the file may say anything of its own offsets
    yield from (text.encode() for text in array.to_pylist() if text)


@contextlib.contextmanager
def _parquet(path):
  from pyarrow import parquet
  with parquet.ParquetFile(path) as table:
    yield table.schema_arrow, lambda column: (
        batch.column(0) for batch in table.iter_batches(MANY, columns=[column]))


@contextlib.contextmanager
def _arrow(path):
  import pyarrow
  from pyarrow import ipc
  with open(path, 'rb') as file:
    is_file = file.read(len(FILE_SIGN)) == FILE_SIGN
  opened = ipc.open_file if is_file else ipc.open_stream
  with pyarrow.memory_map(str(path)) as mapped, opened(mapped) as read:
    numbers = range(read.num_record_batches) if is_file else ()
    batches = lambda: (read.get_batch(i) for i in numbers) if is_file else iter(read)
    yield read.schema, lambda column: (batch.column(column) for batch in batches())
