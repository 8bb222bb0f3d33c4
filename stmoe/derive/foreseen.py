"""What a command will want of a downloaded folder's data, said before the folder is converted."""

from collections.abc import Sequence
import pathlib

import jax
import ml_collections

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.data import recording
from stmoe.data.text import cache
from stmoe.data.text import documents
from stmoe.derive import downloaded
from stmoe.derive import shown
from stmoe.derive import vocabularies
from stmoe.surgery import aside
from stmoe.surgery import layout


class _Looks(BaseException):
  """A surgery looks at data."""


class _Reads(BaseException):
  """A surgery reads an array: it looks at no data, else it would have done so before."""


def data(name: str, overrides: Sequence[str] = ()) -> None:
  """Raises UserError where `name` is a downloaded folder whose texts are missing, or their vocabulary.

  overrides: texts '--config.a.b=value' of the command, which say where texts are.
  """
  if folder := _folder(name):
    cfg, _ = _opened(folder, overrides)
    _check(folder, cfg)


def texts(names: Sequence[str], cfg: ml_collections.ConfigDict) -> None:
  """Raises UserError where one of `names` is a downloaded folder, and texts of `cfg` are missing."""
  if any(map(_folder, names)):
    _readable(cfg)


def replayed(name: str, path: str | None) -> None:
  """Raises UserError where `name` is a downloaded folder and the recording that --replay names is none."""
  if path and _folder(name):
    recording.read(path)


def surgery(name: str, kind: str, text: str, overrides: Sequence[str] = ()) -> None:
  """Raises UserError as `data` does, for a surgery that begins with a look at data, or refuses the model.

  The surgery is begun on arrays that nobody reads: the first thing that it wants tells.

  Args:
    kind, text: of the surgery, see `lookup.bound`.
  """
  folder = _folder(name)
  if not folder:
    return
  cfg, plan = _opened(folder, overrides)
  arrays = jax.tree.map(lambda x: aside.Deferred(x.shape, x.dtype, _read),
                        layout.together(plan.shapes['params'], plan.shapes['router_state']))
  try:
    lookup.bound(kind, text)(layout.numbered(arrays), cfg, _look)
  except _Looks:
    _check(folder, cfg)
  except _Reads:
    pass


def _read(index):
  raise _Reads


def _look(*names, data=None):
  raise _Looks


def _folder(name):
  """The downloaded folder that the user names, or None."""
  path = experiment.run_directory(name)
  return path if downloaded.found(path) else None


def _opened(folder, overrides):
  """(configuration with `overrides`, Blueprint) of the run that the folder would become."""
  cfg, plan = shown.opened(folder)
  return experiment.override(cfg, overrides, whole=False), plan


def _check(folder: pathlib.Path, cfg: ml_collections.ConfigDict) -> None:
  """Raises UserError where the texts of `cfg` are not there, or their vocabulary."""
  _readable(cfg)
  if cfg.data.get('task') != 'text':
    return
  if not cfg.data.vocab and vocabularies.of(folder, cfg, lambda line: None) is None:
    raise errors.UserError(f'{folder} has no vocabulary (tokenizer.json or a SentencePiece model); give its '
                           'own: --config.data.vocab=FILE')


def _readable(cfg):
  """Raises UserError where files of texts cannot be read; other sources say later what they lack."""
  if lookup.source_of(cfg.data) != 'texts':
    return
  if cfg.data.task != 'text' or cfg.data.mixture:
    source = lookup.source(cfg.data)
    for task in source.tasks():
      if not cache.exists(task, source.cache_dir):                   # a cache is read without the packages
        task.documents('train')                                      # says which packages are missing
    return
  names, _ = documents.divided(cfg.data.files)
  next(documents.each(names[0], cfg.data.field, cfg.data.documents), None)   # one is enough
