"""Folders of safetensors: headers first, then any tensor in blocks of rows. No other format is opened.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, place of its bytes)
and the bytes of the tensors. Several files have an index beside them that says which has what. Everything
that can be wrong with a file is found from its header and its size, before a tensor is read.
"""

import dataclasses
import json
import math
import pathlib

import ml_dtypes
import numpy as np

from stmoe import errors

INDEX = 'model.safetensors.index.json'
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')
DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
          'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_}
LONGEST_HEADER = 100_000_000           # of the format's own reader


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file: `shape`, `dtype` (of safetensors) and where its bytes are."""
  file: pathlib.Path
  dtype: str
  shape: tuple
  start: int
  size: int

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` (along the first axis) as a numpy array; all of them by default."""
    rows = self.shape[0] if self.shape else 1
    last = rows if last is None else last
    each = self.size // rows if rows else 0
    with self.file.open('rb') as f:
      f.seek(self.start + first * each)
      data = f.read((last - first) * each)
    if len(data) < (last - first) * each:
      raise errors.UserError(f'{self.file} is cut short')
    shape = (last - first, *self.shape[1:]) if self.shape else ()
    return np.frombuffer(data, DTYPES[self.dtype]).reshape(shape)

  def blocks(self, most):
    """Yields (first, last) rows of pieces of at most `most` bytes, at least one row each."""
    rows = self.shape[0] if self.shape else 1
    step = max(1, most // max(1, self.size // max(rows, 1)))
    for first in range(0, rows, step):
      yield first, min(first + step, rows)


def tensors(folder):
  """Returns dict name -> Tensor of all safetensors files of `folder`.

  Raises UserError for a folder without any, for truncated and malformed files, and for an index that
  names what is not there.
  """
  folder = pathlib.Path(folder)
  if (folder / INDEX).is_file():
    where = load_json(folder / INDEX).get('weight_map')
    if not isinstance(where, dict):
      raise errors.UserError(f'{folder / INDEX} has no weight_map')
    paths = [folder / name for name in sorted(set(where.values()))]
  else:
    where, paths = None, sorted(folder.glob('*.safetensors'))
  if not paths:
    raise errors.UserError(_none(folder))
  found = {}
  for path in paths:
    inside = _open(path)
    twice = next((name for name in inside if name in found), None)
    if twice:
      raise errors.UserError(f'{path} and {found[twice].file} both have the tensor {twice}')
    found |= inside
  lost = [name for name in where or () if name not in found]
  if lost:
    raise errors.UserError(f'{folder / INDEX} names {lost[0]}, which is not in {where[lost[0]]}')
  return found


def _none(folder):
  pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
  if pickles:
    return (f'{folder} has only pickle files ({pickles[0]}), which run code when they are opened and are '
            'never read here; convert them where you trust them, with transformers: '
            'AutoModel.from_pretrained(DIR).save_pretrained(NEW) writes safetensors')
  return f'{folder} has no *.safetensors file'


def _open(path):
  """Dict name -> Tensor of one file, whose header and size are checked."""
  try:
    size = path.stat().st_size
    with path.open('rb') as f:
      length = int.from_bytes(f.read(8), 'little')
      header = f.read(length) if size >= 8 and length <= min(size - 8, LONGEST_HEADER) else None
  except OSError as error:
    raise errors.UserError(f'{path}: {error.strerror}') from None
  if header is None:
    raise errors.UserError(f'{path} is cut short or no safetensors file: its header should have {length:,} '
                           f'bytes, the file has {size:,}')
  try:
    entries = json.loads(header)
    entries.pop('__metadata__', None)
    found = {name: _entry(path, 8 + length, **entry) for name, entry in entries.items()}
  except (ValueError, TypeError, AttributeError) as error:
    raise errors.UserError(f'{path} has a broken header: {" ".join(str(error).split())[:100]}') from None
  ends = {name: tensor.start + tensor.size for name, tensor in found.items()}
  if found and max(ends.values()) > size:
    name = max(ends, key=ends.get)
    raise errors.UserError(f'{path} is cut short: {name} ends at byte {ends[name]:,}, the file has {size:,}')
  return found


def _entry(path, offset, *, dtype, shape, data_offsets):
  first, last = data_offsets
  if dtype not in DTYPES:
    raise ValueError(f'tensors of dtype {dtype}; save them as BF16 or F32 first')
  if last - first != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize or first < 0:
    raise ValueError(f'a tensor {shape} of {dtype} in {last - first} bytes')
  return Tensor(path, dtype, tuple(shape), offset + first, last - first)


def equal(a, b, block=1 << 26):
  """Returns whether Tensors `a` and `b` hold the same bytes."""
  return a.shape == b.shape and a.dtype == b.dtype and all(
      np.array_equal(_words(a.read(*rows)), _words(b.read(*rows))) for rows in a.blocks(block))


def _words(x):
  return x.view(np.uint8) if x.ndim else x.reshape(1).view(np.uint8)


def create(folder, layout, most):
  """Returns dict name -> Tensor of new files in `folder` for `layout`, their headers written.

  One file model.safetensors, or several of at most `most` bytes (but for larger tensors) and their index.
  The files have their full size; `write` fills them.

  Args:
    layout: dict name -> (dtype, shape).
  """
  width = lambda name: np.dtype(DTYPES[layout[name][0]]).itemsize
  size = lambda name: math.prod(layout[name][1]) * width(name)
  parts, room = [[]], most
  for name in sorted(layout, key=lambda name: (-width(name), name)):  # the wide first: all are aligned
    if parts[-1] and size(name) > room:
      parts.append([])
      room = most
    parts[-1].append(name)
    room -= size(name)
  files = ['model.safetensors'] if len(parts) == 1 else [
      f'model-{i:05d}-of-{len(parts):05d}.safetensors' for i in range(1, len(parts) + 1)]
  found = {}
  for file, names in zip(files, parts):
    entries, end = {'__metadata__': {'format': 'pt'}}, 0
    for name in names:
      dtype, shape = layout[name]
      entries[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[end, end := end + size(name)])
    header = json.dumps(entries, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)                              # the data starts aligned
    with (folder / file).open('wb') as f:
      f.write(len(header).to_bytes(8, 'little') + header)
      f.truncate(8 + len(header) + end)
    found |= {name: _entry(folder / file, 8 + len(header), **entries[name]) for name in names}
  if len(files) > 1:
    index = dict(metadata=dict(total_size=sum(map(size, layout))),
                 weight_map={name: tensor.file.name for name, tensor in found.items()})
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
  return found


def write(tensor, first, rows):
  """Writes `rows`, a numpy array, from row `first` of `tensor` on; converts to its dtype."""
  rows = np.ascontiguousarray(rows.astype(DTYPES[tensor.dtype], copy=False))
  each = tensor.size // (tensor.shape[0] if tensor.shape else 1)
  with tensor.file.open('r+b') as f:
    f.seek(tensor.start + first * each)
    f.write(rows.reshape(-1).view(np.uint8).data)


def load_json(path):
  """Returns the object in a JSON file; raises UserError where there is none."""
  try:
    value = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise errors.UserError(f'{path.parent} has no {path.name}') from None
  except (ValueError, OSError) as error:
    raise errors.UserError(f'{path} is not JSON: {error}') from None
  if not isinstance(value, dict):
    raise errors.UserError(f'{path} is not a JSON object')
  return value
