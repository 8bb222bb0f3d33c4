"""Files of text that the user gives: UTF-8, plain or gzip, read with suspicion.

A bad file is a UserError with the field that names the file, the file's path and, in JSON, the line.
"""

import pathlib
import sys

from stmoe import errors
from stmoe import files

# A .gz may unpack to so many times its size, or to so many bytes, if that is more. Text of any kind does not
# reach this limit; a file made to fill the memory does.
RATIO, ROOM = 200, 64 << 20
# Name -> endings, and bytes at a place, of formats that are not text.
FORMATS = {
    'Parquet': (('.parquet',), (0, b'PAR1')),
    'Arrow': (('.arrow', '.feather'), (0, b'ARROW1')),
    'Zstandard': (('.zst', '.zstd'), (0, b'\x28\xb5\x2f\xfd')),
    'LZ4': (('.lz4',), (0, b'\x04\x22\x4d\x18')),
    'bzip2': (('.bz2', '.tbz'), (4, b'1AY&SY')),
    'xz': (('.xz', '.txz', '.lzma'), (0, b'\xfd7zXZ\x00')),
    'zip': (('.zip', '.npz', '.docx', '.epub'), (0, b'PK\x03\x04')),
    '7z': (('.7z',), (0, b'7z\xbc\xaf\x27\x1c')),
    'tar': (('.tar', '.tgz'), (257, b'ustar')),
    'PDF': (('.pdf',), (0, b'%PDF-')),
    'gzip, and does not end in .gz,': ((), (0, b'\x1f\x8b')),
}
LINES = ('.jsonl', '.ndjson')


def content(path, field='data.files'):
  """Returns the bytes, UTF-8, of file `path`, unpacked if the name ends in .gz; `field` names the file."""
  path = pathlib.Path(path)
  name = path.name.lower()
  for format, (endings, _) in FORMATS.items():
    if name.removesuffix('.gz').endswith(endings or ' '):
      raise _refused(path, field, format)
  try:
    most = max(RATIO * path.stat().st_size, ROOM)
    data = files.read_bytes(path, most if name.endswith('.gz') else sys.maxsize)
  except FileNotFoundError as error:
    raise errors.UserError(f'{field}: no file {str(path)!r}{_near(path)}') from error
  except OSError as error:
    raise errors.UserError(f'{field}: cannot read {str(path)!r}: {error.strerror}') from error
  except errors.Damaged as error:
    raise errors.UserError(f'{field}: cannot read {str(path)!r}: {error.reason}') from error
  for format, (_, (at, magic)) in FORMATS.items():
    if data[at:at + len(magic)] == magic:
      raise _refused(path, field, format)
  try:
    data.decode()
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{field}: {str(path)!r} is not UTF-8 (byte {error.start})') from error
  return data


def text(path, field='data.files'):
  """Returns the text of file `path`; as `content`."""
  return content(path, field).decode()


def no_lines(path):
  """Raises UserError for a file of lines of JSON, which would be learned with its braces."""
  if pathlib.Path(path).name.lower().removesuffix('.gz').endswith(LINES):
    raise errors.UserError(f'data.files: {str(path)!r} is lines of JSON, and task text reads plain text; '
                           'write its texts to a .txt first, or use data.task=jsonl with data.jsonl=FILE for '
                           'objects with inputs and targets')


def lines(path, field):
  """Yields (number, line) of the lines of file `path` that are not empty."""
  return ((number, line) for number, line in enumerate(text(path, field).split('\n'), 1) if line.strip())


def json(path, field, kind=dict):
  """Returns the JSON value in file `path`, a `kind`."""
  try:
    return files.parse_json(text(path, field), kind)
  except ValueError as error:
    raise errors.UserError(f'{field}: {path} {error}') from error


def _refused(path, field, format):
  return errors.UserError(f'{field}: {str(path)!r} is {format} and not plain text; unpack or convert it '
                          'first (what is read: UTF-8 text, and the same as .gz)')


def _near(path):
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  return errors.nearest(path.name, names)
