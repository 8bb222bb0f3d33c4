"""Files read with suspicion and written whole: JSON, JSON lines, arrays (npz) and text, plain or gzip.

A file that is missing, cut short, damaged, of another form or too large is `errors.Damaged`, a UserError of
one line with its path and what is wrong. Nothing read here runs as code.
"""

import gzip
import io
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from stmoe import errors

CHUNK = 1 << 24
LARGEST = 1 << 30                        # bytes of a file of JSON or arrays, and of what is unpacked of it
# What reading damaged bytes raises, in the standard library and in NumPy.
BROKEN = (ValueError, LookupError, TypeError, EOFError, OSError, RuntimeError, MemoryError, OverflowError,
          zlib.error, zipfile.BadZipFile)


def read_bytes(path, limit=LARGEST):
  """Returns the content of file `path`, unpacked where its name ends in .gz; Damaged above `limit` bytes."""
  path = pathlib.Path(path)
  try:
    with (gzip.open if path.name.endswith('.gz') else open)(path, 'rb') as file:
      parts, size = [], 0
      while size <= limit and (part := file.read(CHUNK)):
        parts.append(part)
        size += len(part)
  except BROKEN as error:
    raise errors.Damaged(path, getattr(error, 'strerror', None) or reason(error)) from error
  if size > limit:
    raise errors.Damaged(path, f'holds more than {limit:,} bytes')
  return b''.join(parts)


def read_text(path, limit=LARGEST):
  """Returns the UTF-8 text of file `path`, unpacked where its name ends in .gz."""
  try:
    return read_bytes(path, limit).decode()
  except UnicodeDecodeError as error:
    raise errors.Damaged(path, f'is not UTF-8 (byte {error.start})') from error


def read_json(path, kind=dict, limit=LARGEST):
  """Returns the JSON value in file `path`, which must be a `kind` (dict, list, a tuple of them)."""
  try:
    return parse_json(read_text(path, limit), kind)
  except ValueError as error:
    raise errors.Damaged(path, str(error)) from error


def parse_json(text, kind=dict):
  """Returns the JSON value in `text`, a `kind`.

  Raises ValueError, with what is wrong, for anything else, and for what JSON leaves open and nobody means:
  numbers that are not finite, a key twice, half a surrogate pair, nesting without end.
  """
  try:
    value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
    if '\\ud' in text or '\\uD' in text:
      json.dumps(value, ensure_ascii=False).encode()
  except json.JSONDecodeError as error:
    raise ValueError(f'is not JSON ({error.msg} at character {error.pos + 1})') from error
  except RecursionError as error:
    raise ValueError('is nested too deeply') from error
  except UnicodeEncodeError as error:
    raise ValueError('holds half a surrogate pair, which is no character') from error
  if not isinstance(value, kind):
    wanted = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    raise ValueError(f'holds a {type(value).__name__} where a {wanted} belongs')
  return value


def read_lines(path, kind=dict, limit=LARGEST):
  """Returns the values of a file of JSON lines, each a `kind`; [] if there is no such file.

  A last line without its line end is one that a kill cut short, and is left out.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  *lines, _ = read_text(path, limit).split('\n')
  values = []
  for number, line in enumerate(lines, 1):
    try:
      values.append(parse_json(line, kind))
    except ValueError as error:
      raise errors.Damaged(path, f'line {number} {error}') from error
  return values


def read_arrays(path, limit=LARGEST):
  """Returns dict name -> array of the npz file `path`; none of them may hold Python objects."""
  content = io.BytesIO(read_bytes(path, limit))
  try:
    with zipfile.ZipFile(content) as archive:
      if sum(member.file_size for member in archive.infolist()) > limit:
        raise ValueError(f'unpacks to more than {limit:,} bytes')
    with np.load(content, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except BROKEN as error:
    raise errors.Damaged(path, reason(error)) from error


def write_text(path, text):
  """Writes a file so that it is there whole or as it was before."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path, value, **how):
  """Writes `value` as JSON, whole or not at all; `how` goes to json.dumps."""
  write_text(path, json.dumps(value, **dict(dict(indent=2, allow_nan=False), **how)) + '\n')


def append_line(path, value):
  """Adds `value` as one line of JSON; readers and other writers see the line whole or not at all."""
  line = (json.dumps(value, allow_nan=False) + '\n').encode()
  descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
  try:
    os.write(descriptor, line)
  finally:
    os.close(descriptor)


def reason(error):
  """Returns the first words of an error of a library, on one line."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'.rstrip(': ')


def _no_number(name):
  raise ValueError(f'holds {name}, which is no number')


def _finite(text):
  value = float(text)
  if value in (float('inf'), float('-inf')):
    raise ValueError(f'holds {text}, which is too large for a number')
  return value


def _once(pairs):
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    raise ValueError(f'holds the key {next(key for key in keys if keys.count(key) > 1)!r} twice')
  return value
