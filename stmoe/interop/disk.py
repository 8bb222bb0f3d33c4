"""Bytes between memory and disk, past the memory in which the system keeps files.

What is read once and written once is not worth keeping. To find memory for it may take the system longer than
the disk needs, and other programs lose what they keep there. Where a file system refuses (tmpfs), or a system
has no such way, files are read and written as usual.
"""

import errno
import os
import pathlib

import numpy as np

PAGE = 4096                              # places in memory and in files are multiples of it


def read(path: pathlib.Path, first: int, size: int) -> np.ndarray:
  """Returns the bytes u8[size] of a file from byte `first` on, fewer where the file ends; raises OSError.

  What the system has in memory comes from there: a file that was just downloaded, on a slow disk.
  """
  skip = first % PAGE
  room = _room(skip + size)
  with path.open('rb', buffering=0) as file:
    number = None if _known(file.fileno(), first) else _directly(
        path, os.O_RDONLY, lambda direct: _filled(direct, room, first - skip))
    if number is None:
      number = _filled(file.fileno(), room, first - skip)
  return room[skip:min(skip + size, number)]


def write(path: pathlib.Path, data: np.ndarray) -> None:
  """Writes the array `data` as the file `path`, which `settle` then makes safe; raises OSError."""
  room = _room(data.nbytes)
  room[:data.nbytes] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  room[data.nbytes:] = 0
  new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
  if _directly(path, new, lambda direct: _emptied(direct, room, data.nbytes)) is None:
    with path.open('wb', buffering=0) as file:
      _emptied(file.fileno(), room, data.nbytes)
    settle(path)


def settle(path: pathlib.Path) -> None:
  """Waits until a file is on the disk; the system then forgets what it keeps of it."""
  with path.open('rb') as file:
    os.fsync(file.fileno())
    _forget(file.fileno(), 0, 0)


def _directly(path, flags, work):
  """What `work` returns of a descriptor of the file that goes past the system's memory; None without one."""
  if not hasattr(os, 'O_DIRECT'):
    return None
  try:
    direct = os.open(path, flags | os.O_DIRECT, 0o666)
    try:
      return work(direct)
    finally:
      os.close(direct)
  except OSError as error:
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
      return None
    raise


def _room(size):
  """Memory u8[...] for at least `size` bytes, of whole pages."""
  pages = -(-size // PAGE)
  memory = np.empty((pages + 1) * PAGE, np.uint8)
  begin = -memory.ctypes.data % PAGE
  return memory[begin:begin + pages * PAGE]


def _filled(descriptor, room, first):
  """Reads into `room` from byte `first` on; returns how many bytes there were."""
  done = 0
  while done < len(room):
    number = os.preadv(descriptor, [room[done:]], first + done)
    done += number
    if number == 0 or number % PAGE:     # the end of the file
      break
  return done


def _emptied(descriptor, room, size):
  """Writes `room`, of which `size` bytes are meant; returns `size`."""
  done = 0
  while done < len(room):
    done += os.write(descriptor, room[done:])
  os.ftruncate(descriptor, size)
  return size


def _known(descriptor, first):
  """Whether the system has byte `first` of a file in memory."""
  if not hasattr(os, 'RWF_NOWAIT'):
    return True
  os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)           # else the system begins to read
  try:
    return bool(os.preadv(descriptor, [bytearray(1)], first, os.RWF_NOWAIT))
  except OSError:                        # BlockingIOError, or it cannot say
    _forget(descriptor, first, 1)
    return False


def _forget(descriptor, first, size):
  if hasattr(os, 'posix_fadvise'):
    os.posix_fadvise(descriptor, first, size, os.POSIX_FADV_DONTNEED)
