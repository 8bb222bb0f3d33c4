"""What lies beside the arrays of a checkpoint: the position and `meta`, under a digest of both.

Format 2 has `format`, `digest` and [shape, checksum, dtype] of every array in `meta`. Format 1 has [shape,
plain sum] only; nothing says there whether position and meta are as they were written.
"""

import hashlib
import json
import pathlib

from stmoe import errors
from stmoe import files

FORMAT = 2
ITEMS = {name: pathlib.Path(name) / 'metadata' for name in ('meta', 'data')}   # where orbax keeps JSON


def close(meta, data):
  """Returns `meta`, which has the inventory under `arrays`, with format and digest.

  >>> sealed = close(dict(seconds=1.5, arrays={}), dict(step=3))
  >>> check(sealed, dict(step=3))
  >>> check(sealed, dict(step=4))
  Traceback (most recent call last):
  ValueError: position of the data or meta is not what was saved
  """
  meta = {key: value for key, value in meta.items() if key != 'digest'} | dict(format=FORMAT)
  return meta | dict(digest=_digest(meta, data))


def check(meta, data):
  """Raises ValueError unless `meta` and `data` are what was saved, as far as their format can tell."""
  arrays = meta.get('arrays')
  if not isinstance(arrays, dict) or not all(isinstance(entry, list) for entry in arrays.values()):
    raise ValueError('meta has no list of the arrays')
  if not {'format', 'digest'} & set(meta) and all(len(entry) == 2 for entry in arrays.values()):
    return                                                           # format 1
  if meta.get('digest') != _digest({key: value for key, value in meta.items() if key != 'digest'}, data):
    raise ValueError('position of the data or meta is not what was saved')
  if meta['format'] != FORMAT:
    raise ValueError(f'it has format {meta["format"]}, this version of stmoe reads up to {FORMAT}')


def read(folder):
  """Returns (meta, data) of the step in `folder`; raises ValueError if they are not what was saved."""
  try:
    meta, data = (files.read_json(folder / file, (dict, list, type(None))) for file in ITEMS.values())
  except errors.Damaged as error:
    raise ValueError(str(error)) from error
  if not isinstance(meta, dict):
    raise ValueError('meta is no group of fields')
  check(meta, data)
  return meta, data


def _digest(meta, data):
  return hashlib.sha256(json.dumps([meta, data], sort_keys=True).encode()).hexdigest()
