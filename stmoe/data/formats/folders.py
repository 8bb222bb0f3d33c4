"""Folders that Hugging Face `datasets` saved (save_to_disk): which of their files hold rows, and the splits.

A folder of a data set has state.json, which lists files of rows, and dataset_info.json. A folder of several
splits has dataset_dict.json, and a folder for each split.
"""

import pathlib

from stmoe import errors
from stmoe import files

STATE, INFO, SPLITS = 'state.json', 'dataset_info.json', 'dataset_dict.json'


def splits(path):
  """Returns dict split -> its folder, as texts, of a folder of several splits; {} of any other path."""
  listed = pathlib.Path(path) / SPLITS
  if not listed.is_file():
    return {}
  names = files.read_json(listed).get('splits')
  if not isinstance(names, list) or not names or not all(map(_plain, names)):
    raise errors.Damaged(listed, 'does not name its splits')
  return {name: str(pathlib.Path(path) / name) for name in names}


def saved(path):
  """Returns the paths of the files of rows of a folder that `datasets` saved, in order; [] of any other."""
  folder = pathlib.Path(path)
  if not ((folder / STATE).is_file() and (folder / INFO).is_file()):
    return []
  state = files.read_json(folder / STATE)
  if state.get('_indices_data_files'):
    raise errors.UserError(f'data.files: {str(path)!r} was saved with a list of indices, by an old version '
                           'of datasets; save it again with a new one')
  try:
    names = [entry['filename'] for entry in state['_data_files']]
    if not all(map(_plain, names)):
      raise ValueError
  except (KeyError, TypeError, ValueError):
    raise errors.Damaged(folder / STATE, 'does not list its files') from None
  return [str(folder / name) for name in names]


def beside(path):
  """Returns whether file `path` is one of those that `datasets` puts beside its rows."""
  folder = path.parent
  return path.name in (STATE, INFO, SPLITS) and ((folder / INFO).is_file() or (folder / SPLITS).is_file())


def _plain(name):
  """Whether `name` is that of a file in the folder itself."""
  return isinstance(name, str) and name not in ('', '.', '..') and not set('/\\\0') & set(name)
