"""Folders that are whole or not there: written under another name, sealed by digests, checked if opened.

The seal is `facts.json`: what the writer wants to be known of the folder, size and sha256 of every other
file, and a sha256 of all that. `check` compares everything once per process and version of a file (a second
per gigabyte or less). Of a file above WHOLE bytes `check` compares the size; its records, which carry hashes
of their own, are checked as they are read. A folder that fails is made again, and a line says so.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import socket
import sys
from typing import NamedTuple

from stmoe import errors
from stmoe import files

FORMAT = 2                               # of a sealed folder, part of its name; 1 had no seal
SEAL = 'facts.json'
WHOLE = 8 << 30
SAMPLED = 1 << 16                        # bytes


class Kept(NamedTuple):
  """A sealed folder and the facts of its seal, with what identifies its content under 'key'."""
  path: pathlib.Path
  facts: dict

  @property
  def key(self):
    return self.facts['key']


def named(folder, name, key):
  """Returns the path of the sealed folder that is called `name` and holds what `key` stands for."""
  return pathlib.Path(folder) / f'{name}-{key}-v{FORMAT}'


def kept(path, make):
  """Returns the facts of folder `path`; `make(folder) -> facts` fills a missing or broken folder.

  Raises UserError, as `make` does; the error says if a damaged folder cannot be made again.
  """
  damage = None
  if path.is_dir():
    try:
      return check(path)
    except errors.Damaged as error:
      damage = error
      what = f'{pathlib.Path(error.file).name}: {error.reason}'
      print(f'the cache {path} is damaged ({what}); it is made again', file=sys.stderr, flush=True)
  try:
    with new(path) as unfinished:
      seal(unfinished, make(unfinished))
  except errors.UserError as error:
    if damage is None:
      raise
    raise errors.UserError(f'{damage}; the cache cannot be made again: {error}') from error
  return check(path)


def seal(path, facts):
  """Writes the seal of folder `path`, whose other files are all there."""
  listed = {file.name: dict(size=file.stat().st_size, sha256=sha256(file)) for file in sorted(path.iterdir())}
  write(path / SEAL, dict(facts=facts, files=listed))


def check(path):
  """Returns the facts of sealed folder `path`; errors.Damaged if a file differs from the seal."""
  sealed = verified(path / SEAL)
  for name, entry in sealed['files'].items():
    file = path / name
    size = file.stat().st_size if file.is_file() else None
    if size != entry['size']:
      raise errors.Damaged(file, 'is gone' if size is None else f'has {size} bytes, not {entry["size"]}')
    if size <= WHOLE and sha256(file) != entry['sha256']:
      raise errors.Damaged(file, 'has another sha256 than when it was written')
  return sealed['facts']


def write(path, values):
  """Writes the dict `values` as JSON file `path`, with its own digest under 'sha256'."""
  files.write_json(path, values | dict(sha256=_digest(values)), indent=1)


def verified(path):
  """Returns the dict that `write` put into `path`; errors.Damaged if the file holds anything else."""
  values = files.read_json(path)
  if values.pop('sha256', None) != _digest(values):
    raise errors.Damaged(path, 'is not as it was written: its digest differs')
  return values


def _digest(values):
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sample(file):
  """Returns a hex digest of the size of `file` and of its first and last SAMPLED bytes."""
  try:
    with open(file, 'rb') as opened:
      size = opened.seek(0, os.SEEK_END)
      parts = [f'{size} '.encode()]
      for at in (0, max(size - SAMPLED, 0)):
        opened.seek(at)
        parts.append(opened.read(SAMPLED))
  except OSError as error:
    raise errors.Damaged(file, error.strerror) from error
  return hashlib.sha256(b''.join(parts)).hexdigest()


def sha256(file):
  """Returns the hex digest of a file, read once per process while the file stays the same."""
  stat = os.stat(file)
  return _sha256(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4096)
def _sha256(file, *version):
  del version
  try:
    with open(file, 'rb') as opened:
      return hashlib.file_digest(opened, 'sha256').hexdigest()
  except OSError as error:
    raise errors.Damaged(file, error.strerror) from error


@contextlib.contextmanager
def new(path):
  """Gives a folder to fill, which becomes `path` if the body ends well and vanishes if it does not.

  A folder of that name that fails its check is replaced; a whole folder was made by a faster process.
  """
  host = socket.gethostname()
  unfinished = path.with_name(f'{path.name}.unfinished.{host}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    unfinished.mkdir()
    yield unfinished
    if path.is_dir() and not _whole(path):
      shutil.rmtree(path)
    os.rename(unfinished, path)
  except (OSError, RuntimeError, ValueError) as e:
    if _whole(path):                     # another process was faster
      return
    if files.full(e):
      raise errors.UserError(f'no space left on device for the cache {path}; free some, or set '
                             '--config.data.cache_dir=DIR') from e
    if isinstance(e, OSError):
      raise errors.UserError(f'cannot write the cache {path}: {e.strerror}; set '
                             '--config.data.cache_dir=DIR') from e
    raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _whole(path):
  try:
    check(path)
  except errors.Damaged:
    return False
  return True


def sweep(path):
  """Removes what dead processes of this machine left unfinished of folder `path`, whose name may have a *."""
  host = socket.gethostname()
  for leftover in path.parent.glob(f'{path.name}.unfinished.{host}.*'):
    pid = int(leftover.name.rpartition('.')[2])
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      shutil.rmtree(leftover, ignore_errors=True)
    except PermissionError:
      pass
