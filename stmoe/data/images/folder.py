"""A folder of images, a folder for each class: PNG and JPEG files, read once into a cache of encoded images.

Images may have any sizes. A class is numbered by the place of its name among all names in order.
"""

import pathlib
import struct

from array_record.python import array_record_module
import numpy as np

from stmoe import errors
from stmoe.data import arrays
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.images import pixels as images
from stmoe.data.text import cache as caches
from stmoe.data.text import tasks

ENDINGS = ('.png', '.jpg', '.jpeg')
# Our split -> what a folder in data.files may call it; without any, every tenth image is held out.
SPLITS = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val', 'test')}


def keep(files, cache_dir='', classes=()):
  """Returns the `store.Kept` of the images in the folders `files`, made if it is not there.

  Args:
    files:   one folder of classes, or of two folders `train` and `validation` of classes; or these two.
    classes: those of a run, by number; () = those of the training images.
  """
  folders = _folders(files)
  found = {split: _classes(folder) for split, folder in folders.items()}
  classes = list(classes or found['train'])
  rows = {split: _rows(folders[split], by_class, classes) for split, by_class in found.items()}
  if len(rows) == 1:
    held = arrays.held_out(folders['train'], None, len(rows['train']))
    rows = {split: [rows['train'][at] for at in np.flatnonzero(chosen)]
            for split, chosen in zip(tasks.SPLITS, (~held, held), strict=True)}
  for split, of_split in rows.items():
    if not of_split:
      raise errors.UserError(f'{", ".join(map(str, files))}: the split {split!r} holds no images')
  content = [(split, label, store.sha256(file)) for split in tasks.SPLITS for file, label in rows[split]]
  key = caches.digest('images of a folder', classes, content)
  path = store.named(caches.folder(cache_dir), 'images-folder', key)

  def write(folder):
    for split, of_split in rows.items():
      _write(folder / f'{split}.array_record', split, of_split)
    return dict(key=key, num_labels=len(classes), classes=classes)
  return store.Kept(path, store.kept(path, write))


def _folders(files):
  """Dict split -> folder of classes; only 'train' where one folder holds both splits."""
  paths = [pathlib.Path(file) for file in files]
  if len(paths) not in (1, 2):
    raise errors.UserError('data.files: task folder reads one folder, or one for each split; it got '
                           f'{len(paths)}')
  for path in paths:
    if not path.is_dir():
      raise errors.UserError(f'data.files: {path} is no folder; task folder reads a folder with a folder of '
                             'images for each class')
  if len(paths) == 2:
    return dict(zip(tasks.SPLITS, paths, strict=True))
  inside = {split: [paths[0] / name for name in names if (paths[0] / name).is_dir()]
            for split, names in SPLITS.items()}
  if all(inside.values()):
    return {split: candidates[0] for split, candidates in inside.items()}
  alone = next((path for path in sum(inside.values(), []) if any(_folders_in(path))), None)
  if alone is not None:                  # a class may be called so, and holds its images itself
    missing = next(names for split, names in SPLITS.items() if not inside[split])
    raise errors.UserError(f'data.files: {alone} holds folders, as of classes, and there is no folder '
                           f'{" or ".join(missing)} beside; nearest: data.files={alone}')
  return dict(train=paths[0])


def _folders_in(folder):
  """The folders in a folder, in order, without hidden ones."""
  return (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith('.'))


def _classes(folder):
  """Dict class -> its images in order; what is hidden and files with other endings are passed over."""
  hidden = lambda inside: any(part.startswith('.') for part in inside.parts)
  found = {path.name: [file for file in sorted(path.rglob('*'))
                       if file.suffix.lower() in ENDINGS and not hidden(file.relative_to(path))]
           for path in _folders_in(folder)}
  if not any(found.values()):
    raise errors.UserError(f'{folder}: no folder in it holds an image; wanted: a folder for each class, with '
                           f'files {", ".join(ENDINGS)}')
  empty = next((name for name, of_class in found.items() if not of_class), None)
  if empty is not None:
    raise errors.UserError(f'{folder / empty} holds no image ({", ".join(ENDINGS)})')
  return found


def _rows(folder, by_class, classes):
  """List of (file, number of its class); UserError for a class that is not among `classes`."""
  number = {name: at for at, name in enumerate(classes)}
  unknown = next((name for name in by_class if name not in number), None)
  if unknown is not None:
    raise errors.UserError(f'{folder / unknown}: no class of training is called {unknown!r}'
                           f'{errors.nearest(unknown, classes)} (there are: {", ".join(classes[:10])})')
  return [(file, number[name]) for name, of_class in by_class.items() for file in of_class]


def _write(path, split, rows):
  """Writes the images of a split to `path`, as `tfds.Records` reads them."""
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  with progress.task(f'caching images {split}', len(rows), 'images') as advance:
    for file, label in rows:
      try:
        encoded = file.read_bytes()
        images.decode(encoded)
      except Exception as error:         # Pillow raises what each decoder raises
        raise errors.UserError(f'{file} is not readable as an image: {type(error).__name__}: {error}'
                               ) from error
      writer.write(struct.pack('<q', label) + encoded)
      advance(1)
  writer.close()
