"""Folders of safetensors: headers first, then any tensor in blocks of rows. No other format is opened.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, place of its bytes)
and the bytes of the tensors in turn. Several files have an index beside them that says which
file has what. All faults of a file are found from its header and its size, before a tensor is
read. What the format's own reader refuses is refused here.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import math
import mmap
import os
import pathlib
import threading

import ml_dtypes
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe.interop import disk

INDEX = 'model.safetensors.index.json'
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')
DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
          'F8_E4M3': ml_dtypes.float8_e4m3fn, 'I64': np.int64, 'I32': np.int32, 'I16': np.int16,
          'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_}
FLOATS = ('F64', 'F32', 'F16', 'BF16')
LONGEST_HEADER = 100_000_000           # of the format's own reader
LARGEST_SIZE = 1 << 63                 # of a dimension, and of a place in a file
SAMPLES, SAMPLE = 64, 1 << 16          # blocks of a file that stand for all of it, and bytes of a block


class Rows:
  """A tensor that is read in pieces: `shape`, `size` in bytes, `dtype` (of safetensors), `file`, `read`."""

  def blocks(self, most):
    """Yields (first, last) rows of pieces of at most `most` bytes, at least a row each."""
    rows = self.shape[0] if self.shape else 1
    step = max(1, most // max(1, self.size // max(rows, 1)))
    for first in range(0, rows, step):
      yield first, min(first + step, rows)

  def part(self, cut):
    """Returns the part `cut`, slices of the leading axes, as a tensor of its own."""
    return Part(self, cut) if cut else self


@dataclasses.dataclass(frozen=True)
class Tensor(Rows):
  """A tensor in a file: `shape`, `dtype` (of safetensors) and where its bytes are.

  once: it will not be read again, nor by other processes: the system need not keep it in memory.
  """
  file: pathlib.Path
  dtype: str
  shape: tuple
  start: int
  size: int
  once: bool = False

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` (along the first axis) as a numpy array; all of them by default.

    It is a map of the file, read where it is used, unless the tensor is read `once`.
    """
    rows = self.shape[0] if self.shape else 1
    last = rows if last is None else last
    row_bytes = self.size // rows if rows else 0
    shape = (last - first, *self.shape[1:]) if self.shape else ()
    if not row_bytes or last == first:
      return np.empty(shape, DTYPES[self.dtype])
    begin, size = self.start + first * row_bytes, (last - first) * row_bytes
    try:
      data = (disk.read if self.once else _mapped)(self.file, begin, size)
    except OSError as error:
      raise errors.Damaged(self.file, error.strerror) from error
    if len(data) < size:
      raise errors.Damaged(self.file, 'is cut short')
    return data.view(DTYPES[self.dtype]).reshape(shape)

  def write(self, first, rows):
    """Writes `rows`, a numpy array, from row `first` on; converts to the tensor's dtype."""
    rows = np.ascontiguousarray(rows.astype(DTYPES[self.dtype], copy=False))
    row_bytes = self.size // (self.shape[0] if self.shape else 1)
    with self.file.open('r+b') as f:
      f.seek(self.start + first * row_bytes)
      f.write(rows.reshape(-1).view(np.uint8).data)

  def part(self, cut):
    """Returns the part `cut`, numbers and slices of the leading axes, as a tensor of its own."""
    size = self.size // max(self.shape[0], 1)
    if cut and isinstance(cut[0], int):
      one = dataclasses.replace(self, shape=self.shape[1:], start=self.start + cut[0] * size, size=size)
      return one.part(cut[1:])
    return super().part(cut)


def _mapped(path, begin, size):
  """The bytes u8[size] of a file from `begin` on, as a read-only map; fewer where the file ends."""
  skip = begin % mmap.ALLOCATIONGRANULARITY                          # a map begins at a page
  with path.open('rb') as f:
    # What is mapped is read when it is used, beside other threads. MAP_POPULATE reads it here, and no
    # other thread of Python 3.11 runs meanwhile.
    size = min(size, os.fstat(f.fileno()).st_size - begin)
    if size <= 0:
      return np.empty(0, np.uint8)
    mapped = mmap.mmap(f.fileno(), skip + size, mmap.MAP_SHARED, mmap.PROT_READ, offset=begin - skip)
  return np.frombuffer(mapped, np.uint8, size, skip)


BETWEEN = threading.Lock()               # nobody else writes between reading rows and writing them


@dataclasses.dataclass(frozen=True)
class Part(Rows):
  """The slices `cut` of the leading axes of the Tensor `whole`, read and written as a tensor of their own."""
  whole: Tensor
  cut: tuple

  @property
  def file(self):
    return self.whole.file

  @property
  def dtype(self):
    return self.whole.dtype

  @property
  def shape(self):
    sizes = [len(range(n)[at]) for n, at in zip(self.whole.shape, self.cut)]
    return (*sizes, *self.whole.shape[len(sizes):])

  @property
  def size(self):
    return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` of the part; all of them by default."""
    span = self._span(first, last)
    return self.whole.read(span.start, span.stop)[self._inside(span)]

  def write(self, first, rows):
    """Writes `rows` from row `first` of the part on; what lies between them stays."""
    span = self._span(first, first + len(rows))
    if span.step == 1 and self.shape[1:] == self.whole.shape[1:]:
      self.whole.write(span.start, rows)
      return
    with BETWEEN:
      known = np.array(self.whole.read(span.start, span.stop))
      known[self._inside(span)] = rows
      self.whole.write(span.start, known)

  def _span(self, first, last):
    """The rows of the whole that hold rows `first` to `last`, without those behind the last of them."""
    rows = range(self.whole.shape[0])[self.cut[0]][first:last]
    return range(rows.start, rows[-1] + 1 if rows else rows.start, rows.step)

  def _inside(self, span):
    return (slice(None, None, span.step), *self.cut[1:])


def tensors(folder, once=False):
  """Returns dict name -> Tensor of all safetensors files of `folder`, which are read `once` or more often.

  Raises UserError for a folder without such files and for files that are not as the format has them. Raises
  it also for an index that names what is not there or not in this folder.
  """
  folder = pathlib.Path(folder)
  where = _index(folder / INDEX) if (folder / INDEX).is_file() else {}
  paths = [inside(folder, name) for name in sorted({*where.values()})] or [
      inside(folder, path.name) for path in sorted(folder.glob('*.safetensors'))]
  if not paths:
    raise errors.UserError(_none(folder))
  listed = {}
  for path in paths:
    in_file = _open(path)
    twice = next((name for name in in_file if name in listed), None)
    if twice:
      raise errors.UserError(f'{path} and {listed[twice].file} both have the tensor {twice}')
    listed |= {name: dataclasses.replace(tensor, once=once) for name, tensor in in_file.items()}
  lost = next((name for name, file in where.items() if name not in listed or listed[name].file.name != file),
              None)
  if lost:
    raise errors.Damaged(folder / INDEX, f'names {lost}, which is not in {where[lost]}')
  return listed


def metadata(path):
  """Returns the dict of texts that stands in the header of a safetensors file beside its tensors."""
  _open(path)                            # which checks the header
  with pathlib.Path(path).open('rb') as f:
    header = f.read(int.from_bytes(f.read(8), 'little'))
  return files.parse_json(header.decode()).get('__metadata__', {})


def fingerprint(folder: str | pathlib.Path) -> Iterator[str]:
  """Yields a line for each file of tensors in `folder`, which another content makes another.

  It has name, size, time, and a digest of the header and of blocks at equal distances. So files of any size
  are told apart at once; a file of up to SAMPLES blocks is read whole.
  """
  for path in sorted(pathlib.Path(folder).glob('*.safetensors')):
    path = inside(path.parent, path.name)
    try:
      about, digest = path.stat(), hashlib.sha256()
      with path.open('rb') as f:
        digest.update(f.read(min(int.from_bytes(f.read(8), 'little'), LONGEST_HEADER)))
        last = max(about.st_size, SAMPLES * SAMPLE) - SAMPLE
        for number in range(SAMPLES):
          f.seek(number * last // (SAMPLES - 1))
          digest.update(f.read(SAMPLE))
    except OSError as error:
      raise errors.Damaged(path, error.strerror) from error
    yield f'{path.name} {about.st_size} {about.st_mtime_ns} {digest.hexdigest()}'


def _index(path):
  """Dict tensor -> name of its file, of an index."""
  where = files.read_json(path).get('weight_map')
  if not isinstance(where, dict) or not where:
    raise errors.Damaged(path, 'has no weight_map')
  wrong = next((name for name, file in where.items() if not isinstance(file, str)), None)
  if wrong is not None:
    raise errors.Damaged(path, f'has {where[wrong]!r:.60} for {wrong}, which is no name of a file')
  return where


def inside(folder, name):
  """Returns the path of file `name` of `folder`; raises Damaged for a name or a link that leads elsewhere.

  The cache of huggingface_hub is one folder: in snapshots/REVISION are links to its `blobs`.
  """
  path, home = folder / name, folder.resolve()
  if pathlib.PurePath(name).name != name or name in ('', '..') or '\0' in name:
    raise errors.Damaged(folder / INDEX, f'names {name!r}, which is no file of this folder')
  if path.is_symlink() and path.resolve().parent not in (home, home.parent.parent / 'blobs'):
    raise errors.Damaged(path, 'is a link to a file outside of its folder; copy it there if you trust it')
  return path


def _none(folder):
  pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
  if pickles:
    return (f'{folder} has only pickle files ({pickles[0]}), which run code when they are opened and are '
            'never read here; convert them where you trust them, with transformers: '
            'AutoModel.from_pretrained(DIR).save_pretrained(NEW) writes safetensors')
  return f'{folder} has no *.safetensors file'


def _open(path):
  """Dict name -> Tensor of a file, whose header and size are checked."""
  try:
    size = path.stat().st_size
    with path.open('rb') as f:
      length = int.from_bytes(f.read(8), 'little')
      header = f.read(length) if size >= 8 and length <= min(size - 8, LONGEST_HEADER) else None
  except OSError as error:
    raise errors.Damaged(path, error.strerror) from error
  if header is None:
    raise errors.Damaged(path, f'is cut short or no safetensors file: its header should have {length:,} '
                               f'bytes, the file has {size:,}, a header at most {LONGEST_HEADER:,}')
  try:
    entries = files.parse_json(header.decode())
    _metadata(entries.pop('__metadata__', {}))
    by_name = {name: _entry(path, 8 + length, name, entry) for name, entry in entries.items()}
  except ValueError as error:                                        # UnicodeDecodeError is one
    raise errors.Damaged(path, f'has a broken header: it {" ".join(str(error).split())[:200]}') from error
  _check_places(path, by_name, 8 + length, size)
  return by_name


def _metadata(entry):
  if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
    raise ValueError('has a __metadata__ that is no object of texts')


def _entry(path, offset, name, entry):
  """The Tensor of an entry of a header; raises ValueError, naming the tensor, for any other form."""
  if not isinstance(entry, dict) or sorted(entry) != ['data_offsets', 'dtype', 'shape']:
    raise ValueError(f'has no dtype, shape and data_offsets for {name}, or more than these')
  dtype, shape, places = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'has {name} of dtype {dtype!r:.40}; save it as BF16 or F32 first')
  for field, numbers in (('shape', shape), ('data_offsets', places)):
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < LARGEST_SIZE for n in numbers):
      raise ValueError(f'has {name} with {field} {numbers!r:.80}, which are no sizes')
  if len(places) != 2 or places[1] - places[0] != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
    raise ValueError(f'has {name}, {shape} of {dtype}, at bytes {places!r:.80}, which are not as many')
  return Tensor(path, dtype, tuple(shape), offset + places[0], places[1] - places[0])


def _check_places(path, found, begin, size):
  """Raises Damaged unless the Tensors follow each other from byte `begin` to the end of the file."""
  ordered = sorted(found.items(), key=lambda item: (item[1].start, item[1].size))
  ends = [begin, *(tensor.start + tensor.size for _, tensor in ordered)]
  for (name, tensor), end in zip(ordered, ends):
    if tensor.start != end:
      fault = 'overlaps the tensor before it' if tensor.start < end else 'has a hole before it'
      raise errors.Damaged(path, f'has a broken header: {name} {fault} (byte {tensor.start:,}, not {end:,})')
  if ends[-1] > size:
    raise errors.Damaged(path, f'is cut short: {ordered[-1][0]} ends at byte {ends[-1]:,}, the file has '
                               f'{size:,}')
  if ends[-1] < size:
    raise errors.Damaged(path, f'has {size - ends[-1]:,} bytes behind its last tensor')


def equal(a, b, block=1 << 26):
  """Returns whether Tensors `a` and `b` hold the same bytes."""
  return a.shape == b.shape and a.dtype == b.dtype and all(
      np.array_equal(_words(a.read(*rows)), _words(b.read(*rows))) for rows in a.blocks(block))


def _words(x):
  return x.view(np.uint8) if x.ndim else x.reshape(1).view(np.uint8)


def create(folder, layout, most, stem='model', metadata=None):
  """Returns dict name -> Tensor of new files in `folder` for `layout`, their headers written.

  The file is STEM.safetensors, or several of at most `most` bytes (but for larger tensors) and their index.
  The files have their full size; `Tensor.write` fills them.

  Args:
    layout:   dict name -> (dtype, shape).
    stem:     of the file, without its ending; of several files always 'model'.
    metadata: dict of texts for the header; None = what other libraries look for.
  """
  width = lambda name: np.dtype(DTYPES[layout[name][0]]).itemsize
  size = lambda name: math.prod(layout[name][1]) * width(name)
  parts, room = [[]], most
  for name in sorted(layout, key=lambda name: (-width(name), name)):  # wide types first: all are aligned
    if parts[-1] and size(name) > room:
      parts.append([])
      room = most
    parts[-1].append(name)
    room -= size(name)
  named = [f'{stem}.safetensors'] if len(parts) == 1 else [
      f'model-{i:05d}-of-{len(parts):05d}.safetensors' for i in range(1, len(parts) + 1)]
  created = {}
  for file, names in zip(named, parts):
    entries, end = {'__metadata__': {'format': 'pt'} if metadata is None else metadata}, 0
    for name in names:
      dtype, shape = layout[name]
      entries[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[end, end := end + size(name)])
    header = json.dumps(entries, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)                              # the data starts aligned
    with (folder / file).open('wb') as f:
      f.write(len(header).to_bytes(8, 'little') + header)
      f.truncate(8 + len(header) + end)
    created |= {name: _entry(folder / file, 8 + len(header), name, entries[name]) for name in names}
  if len(named) > 1:
    index = dict(metadata=dict(total_size=sum(map(size, layout))),
                 weight_map={name: tensor.file.name for name, tensor in created.items()})
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
  return created
