"""Files of text that the user gives: UTF-8, plain, gzip or Zstandard, read with suspicion.

A bad file is a UserError with the field that names the file, the file's path and, in JSON, the line.
"""

import pathlib
import sys

from stmoe import errors
from stmoe import files

# A .gz or .zst may unpack to so many times its size, or to so many bytes, if that is more. Text of any kind
# does not reach this limit; a file made to fill the memory does.
RATIO, ROOM = 200, 64 << 20
# Name -> endings, and bytes at a place, of formats that are not text.
FORMATS = {
    'Parquet': (('.parquet',), (0, b'PAR1')),
    'Arrow': (('.arrow', '.feather'), (0, b'ARROW1')),
    'LZ4': (('.lz4',), (0, b'\x04\x22\x4d\x18')),
    'bzip2': (('.bz2', '.tbz'), (4, b'1AY&SY')),
    'xz': (('.xz', '.txz', '.lzma'), (0, b'\xfd7zXZ\x00')),
    'zip': (('.zip', '.npz', '.docx', '.epub'), (0, b'PK\x03\x04')),
    '7z': (('.7z',), (0, b'7z\xbc\xaf\x27\x1c')),
    'tar': (('.tar', '.tgz'), (257, b'ustar')),
    'PDF': (('.pdf',), (0, b'%PDF-')),
    'gzip, and does not end in .gz,': ((), (0, b'\x1f\x8b')),
    'Zstandard, and does not end in .zst,': ((), (0, b'\x28\xb5\x2f\xfd')),
}
ZSTANDARD = ('.zst', '.zstd')
PACKED = ('.gz', *ZSTANDARD)


def unpacked_name(path):
  """Returns the name of file `path` in small letters, without the ending of what it is packed as."""
  name = pathlib.Path(path).name.lower()
  return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


def content(path, field='data.files'):
  """Returns the bytes, UTF-8, of file `path`, unpacked as its name says (PACKED); `field` names the file."""
  path = pathlib.Path(path)
  name = path.name.lower()
  for format, (endings, _) in FORMATS.items():
    if unpacked_name(path).endswith(endings or ' '):
      raise _refused(path, field, format)
  try:
    most = max(RATIO * path.stat().st_size, ROOM)
    data = (_zstandard(path, most, field) if name.endswith(ZSTANDARD) else
            files.read_bytes(path, most if name.endswith('.gz') else sys.maxsize))
  except FileNotFoundError as error:
    raise absent(path, field) from error
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


def arrow(path, field):
  """Returns the module pyarrow, which reads file `path`; UserError where it is not installed."""
  try:
    import pyarrow
  except ImportError:
    raise errors.UserError(f'{field}: {str(path)!r} is read by pyarrow, which is not installed: pip install '
                           'pyarrow') from None
  return pyarrow


def _zstandard(path, most, field):
  """The content of a file that is packed by Zstandard; Damaged above `most` bytes."""
  pyarrow = arrow(path, field)
  with open(path, 'rb') as packed:
    packed = packed.read()
  try:
    data = pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), 'zstd').read(most + 1)
  except OSError as error:               # without a number: it is no error of the system
    raise errors.Damaged(path, 'is damaged, or no Zstandard') from error
  if len(data) > most:
    raise errors.Damaged(path, f'holds more than {most:,} bytes')
  return data


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
                          'first (what is read: UTF-8 text, and the same as .gz or .zst)')


def absent(path, field):
  """Returns the UserError of a file that is not there, with the names most like it."""
  return errors.UserError(f'{field}: no file {str(path)!r}{_near(pathlib.Path(path))}')


def _near(path):
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  return errors.nearest(path.name, names)
