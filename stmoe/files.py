"""Files read with suspicion and written whole: JSON, JSON lines, arrays (npz) and text, plain or gzip.

A file may be missing, cut short, damaged, of another form or too large. Then `errors.Damaged` is raised, a
UserError of one line with the file's path and what is wrong. Nothing read here runs as code.
"""

import atexit
import errno
import functools
import gzip
import hashlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
import zipfile
import zlib

from stmoe import errors

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)   # of a full disk, a quota or a limit of the system
CHUNK = 1 << 24
# Absolute paths that mean the same to every library; orbax takes /gs/ and the like for addresses of a cloud.
PLAIN = re.compile(r'(?!/(gs|s3|az|hf)(/|$))[\w/.,+=@ -]*')
LARGEST = 1 << 30                        # bytes of a file of JSON or arrays, and of what is unpacked of it
DEEPEST = 100                            # levels of JSON, which recursive functions go down
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


def parse_json(text, kind=dict, nan=False):
  """Returns the JSON value in `text`, a `kind`.

  Raises ValueError, with what is wrong, for anything else. Raises it also for what JSON leaves open and
  nobody means: numbers that are not finite (with `nan`, NaN and Infinity are None), a key twice, half a
  surrogate pair, nesting without end.
  """
  try:
    value = json.loads(text, parse_constant=_none if nan else _no_number, parse_float=_finite,
                       object_pairs_hook=_once)
    if text.count('[') + text.count('{') > DEEPEST and _deep(value):
      raise RecursionError
    if '\\ud' in text or '\\uD' in text:
      json.dumps(value, ensure_ascii=False).encode()
  except json.JSONDecodeError as error:
    raise ValueError(f'is not JSON ({error.msg} at character {error.pos + 1})') from error
  except RecursionError as error:
    raise ValueError('is nested too deeply') from error
  except UnicodeEncodeError as error:
    raise ValueError('holds half a surrogate pair, which is no character') from error
  if not isinstance(value, kind):
    names = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    raise ValueError(f'holds a {type(value).__name__} where a {names} belongs')
  return value


def read_lines(path, kind=dict, check=lambda value: None, bad=None, nan=False, limit=LARGEST):
  """Returns the values of a file of JSON lines, each a `kind`; [] if there is no such file.

  A last line that a kill cut short is left out.

  Args:
    check: called with each value; raises ValueError, with what is wrong, for a value of another form.
    bad:   called with errors.Damaged for every line that is no such value, which is then left out; None =
      the error is raised.
    nan:   see `parse_json`.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  *lines, last = read_bytes(path, limit).split(b'\n')
  values = []
  for number, line in enumerate([*lines, last], 1):
    try:
      value = parse_json(line.decode(), kind, nan)
      check(value)
      values.append(value)
    except ValueError as error:
      if number > len(lines):
        continue
      text = f'is not UTF-8 (byte {error.start})' if isinstance(error, UnicodeDecodeError) else error
      damage = errors.Damaged(path, f'line {number} {text}')
      if bad is None:
        raise damage from error
      bad(damage)
  return values


def read_arrays(path, limit=LARGEST):
  """Returns dict name -> array of the npz file `path`; no array may hold Python objects."""
  import numpy as np                     # other files are read without numpy, by commands that answer at once
  content = io.BytesIO(read_bytes(path, limit))
  try:
    with zipfile.ZipFile(content) as archive:
      if sum(member.file_size for member in archive.infolist()) > limit:
        raise ValueError(f'unpacks to more than {limit:,} bytes')
    with np.load(content, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except BROKEN as error:
    raise errors.Damaged(path, reason(error)) from error


def write_arrays(path, arrays):
  """Writes dict name -> array as an npz file, whole or not at all; no array may hold Python objects."""
  import numpy as np
  content = io.BytesIO()
  np.savez(content, allow_pickle=False, **arrays)
  write_bytes(path, content.getvalue())


def write_text(path, text):
  """Writes a file of UTF-8, whole or not at all; half a surrogate pair is written as \\udxxx."""
  write_bytes(path, text.encode(errors='backslashreplace'))


def write_bytes(path, content):
  """Writes a file: after a crash it is whole or as before. A link is replaced, not followed."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name[:40]}.{os.getpid()}.tmp')   # a name of any length
  try:
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    if full(error):
      raise                              # the command line has a line for it
    raise errors.Damaged(path, f'cannot be written: {error.strerror}') from error
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path, value, **how):
  """Writes `value` as JSON, whole or not at all; `how` goes to json.dumps."""
  write_text(path, json.dumps(value, **dict(dict(indent=2, allow_nan=False), **how)) + '\n')


def check_place(flag, path):
  """Raises UserError unless option `flag` names a place for a file: in a folder, and no folder itself."""
  path = pathlib.Path(path)
  if not path.parent.is_dir():
    raise errors.UserError(f'{flag} {path}: no directory {path.parent}')
  if path.is_dir():
    raise errors.UserError(f'{flag} {path} is a directory; nearest: {path / "FILE"}')
  written = path if path.exists() and not path.is_file() else path.parent          # a pipe, or a new file
  if not os.access(written, os.W_OK):
    raise errors.UserError(f'{flag} {path}: {written} is not writable')


def append_line(path, value):
  """Adds `value` as a line of JSON; readers and other writers see the line whole or not at all.

  Raises OSError where the disk has no room for all of it; then nothing of it stays.
  """
  line = (json.dumps(value, allow_nan=False) + '\n').encode()
  descriptor = open_to_append(path)
  try:
    if (written := os.write(descriptor, line)) < len(line):
      os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  finally:
    os.close(descriptor)


def open_to_append(path):
  """Returns a descriptor that writes at the end of file `path`, made if need be; a link is not followed."""
  try:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  except OSError as error:
    link = error.errno == errno.ELOOP
    raise errors.Damaged(path, f'cannot be written: {"it is a link" if link else error.strerror}') from error


def full(error):
  """Returns the error behind `error` which says that the disk is full, or None.

  The error says so by its number or, made by a library, in its text; libraries wrap it in their own errors.
  """
  while error is not None:
    if getattr(error, 'errno', None) in FULL or any(os.strerror(code) in str(error) for code in FULL):
      return error
    error = error.__cause__ or error.__context__
  return None


def plain(value):
  """Returns `value`, of dicts, lists and tuples, with None for every number that is not finite."""
  if isinstance(value, dict):
    return {key: plain(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def reason(error):
  """Returns the first words of an error of a library, on one line."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'.rstrip(': ')


def _deep(value):
  """Whether dicts and lists are inside one another more than DEEPEST times."""
  level = [value]
  for _ in range(DEEPEST):
    inside = [v for v in level if isinstance(v, (dict, list))]
    level = [inner for v in inside for inner in (v.values() if isinstance(v, dict) else v)]
  return any(isinstance(v, (dict, list)) for v in level)


def _no_number(name):
  raise ValueError(f'holds {name}, which is no number')


def _none(name):
  return None


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


def plain_path(path):
  """Returns a Path of folder `path` that no library takes for a pattern, an escape or an address.

  It is `path` itself, or a link to the folder where the name is not plain (`runs/a[1]`, `gs:`, bytes that are
  not UTF-8). Links lie in a folder that only this process knows and that goes with the process. What a kill
  leaves is a link in the temporary folder.
  """
  path = pathlib.Path(path).resolve()
  if PLAIN.fullmatch(str(path)):
    return path
  link = _links() / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
  if not link.is_symlink():
    link.symlink_to(path, target_is_directory=True)
  return link


@functools.cache
def _links():
  """A new folder for the links of this process."""
  for parent in (tempfile.gettempdir(), '/tmp', '/var/tmp'):
    if PLAIN.fullmatch(os.path.realpath(parent)) and os.access(parent, os.W_OK):
      folder = pathlib.Path(tempfile.mkdtemp(prefix='stmoe-', dir=os.path.realpath(parent)))
      atexit.register(shutil.rmtree, folder, ignore_errors=True)
      return folder
  raise errors.UserError('there is no temporary folder with a plain name; set TMPDIR to one')
