"""Files past the system's memory: the same bytes at all places and sizes, and nothing kept of them."""

import errno
import os

import numpy as np
import pytest

from stmoe.interop import disk
from tests.interop.test_memory import held

SIZES = (0, 1, 511, 4095, 4096, 4097, 3 * 4096, 100_003)


def numbers(size):
  return np.random.default_rng(size).integers(0, 256, size, np.uint8)


@pytest.fixture(params=(True, False), ids=('past memory', 'refused'))
def ways(request, monkeypatch):
  """Both ways: a file system with files past memory, if the temporary folder has them, and one without."""
  usual = os.open

  def refusing(path, flags, *args, **keywords):
    if flags & getattr(os, 'O_DIRECT', 0):
      raise OSError(errno.EINVAL, 'no such way')
    return usual(path, flags, *args, **keywords)
  if not request.param:
    monkeypatch.setattr(os, 'open', refusing)


@pytest.mark.parametrize('size', SIZES)
def test_written_and_read(tmp_path, ways, size):
  data = numbers(size)
  (tmp_path / 'x').write_bytes(b'what was there before' * 10_000)
  disk.write(tmp_path / 'x', data)
  assert (tmp_path / 'x').read_bytes() == data.tobytes()
  disk.settle(tmp_path / 'x')
  for first in {0, 1, size // 2, 4096, size}:
    for most in (1, 4096, size):
      assert disk.read(tmp_path / 'x', first, most).tobytes() == data[first:first + most].tobytes()


def test_arrays_are_written_in_their_order(tmp_path, ways):
  x = np.arange(6, dtype=np.int16).reshape(2, 3)
  disk.write(tmp_path / 'x', x.T)
  assert np.fromfile(tmp_path / 'x', np.int16).tolist() == [0, 3, 1, 4, 2, 5]


def test_errors_are_those_of_files(tmp_path, ways):
  with pytest.raises(FileNotFoundError):
    disk.read(tmp_path / 'none', 0, 10)
  with pytest.raises(FileNotFoundError):
    disk.write(tmp_path / 'none' / 'x', numbers(10))


@pytest.mark.skipif(not hasattr(os, 'O_DIRECT'), reason='there is no such way')
def test_nothing_is_kept(tmp_path):
  file, data = tmp_path / 'x', numbers(1 << 22)
  disk.write(file, data)
  if held(file) > 0.1:
    pytest.skip('files are kept in memory here')
  assert disk.read(file, 4096 + 8, 1 << 21).tobytes() == data[4096 + 8:][:1 << 21].tobytes()
  assert held(file) < 0.1


@pytest.mark.skipif(not hasattr(os, 'RWF_NOWAIT'), reason='nobody says what is in memory')
def test_what_is_in_memory_comes_from_there(tmp_path, monkeypatch):
  file, data = tmp_path / 'x', numbers(1 << 20)
  file.write_bytes(data)

  def refuse(*args, **keywords):
    raise AssertionError('the disk was asked')
  monkeypatch.setattr(disk, '_directly', refuse)
  assert disk.read(file, 5, 1 << 19).tobytes() == data[5:][:1 << 19].tobytes()
