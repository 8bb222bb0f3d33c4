"""Files of text that the user gives: UTF-8, plain, gzip or Zstandard, read with suspicion.

A bad file is a UserError with the field that names the file, the file's path and, in JSON, the line.
"""

import gzip
import io
import os
import pathlib
import sys

from stmoe import errors
from stmoe import files

# A .gz or .zst may unpack to so many times its size, or to so many bytes, if that is more. Text of any kind
# does not reach this limit; a file made to fill the memory does.
RATIO, ROOM = 200, 64 << 20
HEAD, BUFFER = 512, 1 << 20              # bytes that show the format; bytes that are read at once
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
MARK = '\ufeff'                          # of byte order, as spreadsheets write it before UTF-8
ZSTANDARD = ('.zst', '.zstd')
PACKED = ('.gz', *ZSTANDARD)


def unpacked_name(path):
  """Returns the name of file `path` in small letters, without the ending of what it is packed as."""
  name = pathlib.Path(path).name.lower()
  if name.endswith('.tgz'):
    return name.removesuffix('.tgz') + '.tar'
  return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


class Unpacked(io.RawIOBase):
  """The bytes of file `path`, unpacked as its name says (PACKED), read in parts.

  A file that is absent or damaged, unpacks to too much, or has a format of FORMATS is a UserError. A damage
  may show only when its place is read.

  Args:
    field:  names the file in messages.
    wanted: the key of FORMATS that the caller reads; '' = none.
    count:  called with the number of bytes of the file itself that were read.
  """

  def __init__(self, path, field='data.files', wanted='', count=lambda read: None):
    self._path, self._field, self._count, self._counted, self._given = path, field, count, 0, 0
    formats = {name: signs for name, signs in FORMATS.items() if name != wanted}
    for name, (endings, _) in formats.items():
      if unpacked_name(path).endswith(endings):
        raise _refused(path, field, name)
    self._raw = self._tried(lambda: open(path, 'rb'))
    self._file, packed = self._unpacking(pathlib.Path(path).name.lower())
    self._most = max(RATIO * os.fstat(self._raw.fileno()).st_size, ROOM) if packed else sys.maxsize
    self._head = b''
    while len(self._head) < HEAD and (part := self._next(HEAD - len(self._head))):
      self._head += part
    for name, (_, (at, sign)) in formats.items():
      if self._head[at:at + len(sign)] == sign:
        raise _refused(path, field, name)

  def readable(self):
    """Returns True."""
    return True

  def readinto(self, buffer):
    """Reads the next bytes into `buffer`; returns how many there were, 0 at the end."""
    size = len(buffer)
    part = self._head[:size] or self._next(size)
    self._head = self._head[size:]
    buffer[:len(part)] = part
    return len(part)

  def close(self):
    """Closes the file."""
    if not self.closed and hasattr(self, '_raw'):
      self._raw.close()
    super().close()

  def _unpacking(self, name):
    """(what unpacked bytes are read from, whether the file is packed)."""
    if name.endswith(ZSTANDARD):
      return arrow(self._path, self._field).CompressedInputStream(self._raw, 'zstd'), True
    if name.endswith(('.gz', '.tgz')):
      return gzip.GzipFile(fileobj=self._raw), True
    return self._raw, False

  def _next(self, size):
    part = self._tried(lambda: self._file.read(size))
    self._given += len(part)
    if self._given > self._most:
      raise errors.UserError(f'{self._field}: cannot read {str(self._path)!r}: holds more than '
                             f'{self._most:,} bytes')
    at = self._raw.tell()
    self._count(at - self._counted)
    self._counted = at
    return part

  def _tried(self, work):
    try:
      return work()
    except FileNotFoundError as error:
      raise absent(self._path, self._field) from error
    except files.BROKEN as error:        # of pyarrow an OSError without a number: it is none of the system
      zstandard = str(self._path).lower().endswith(ZSTANDARD) and not getattr(error, 'errno', None)
      why = 'is damaged, or no Zstandard' if zstandard else (
          getattr(error, 'strerror', None) or files.reason(error))
      raise errors.UserError(f'{self._field}: cannot read {str(self._path)!r}: {why}') from error


def opened(path, field='data.files', wanted='', count=lambda read: None):
  """Returns the binary file, with a buffer, of what is in file `path`; see Unpacked."""
  return io.BufferedReader(Unpacked(path, field, wanted, count), BUFFER)


def content(path, field='data.files', count=lambda read: None):
  """Returns the bytes, UTF-8, of file `path`, unpacked as its name says; `field` names the file."""
  with opened(path, field, count=count) as file:
    return utf8(b''.join(iter(lambda: file.read(files.CHUNK), b'')), path, field)


def utf8(data, path, field='data.files', at=0):
  """Returns `data`, bytes that stand at `at` in file `path`; UserError where they are no UTF-8."""
  try:
    data.decode()
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{field}: {str(path)!r} is not UTF-8 (byte {at + error.start})') from error
  return data


def text(path, field='data.files'):
  """Returns the text of file `path`, as `content`, without the byte-order mark that may be before it."""
  return content(path, field).decode().removeprefix(MARK)


def arrow(path, field):
  """Returns the module pyarrow, which reads file `path`; UserError where it is not installed."""
  try:
    import pyarrow
  except ImportError:
    raise errors.UserError(f'{field}: {str(path)!r} is read by pyarrow, which is not installed: pip install '
                           'pyarrow') from None
  return pyarrow


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
                          'first (what is read: UTF-8 text, and the same as .gz or .zst; by task text also '
                          '.parquet, .arrow and .tar)')


def absent(path, field):
  """Returns the UserError of a file that is not there, with the names most like it."""
  return errors.UserError(f'{field}: no file {str(path)!r}{_near(pathlib.Path(path))}')


def _near(path):
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  return errors.nearest(path.name, names)
