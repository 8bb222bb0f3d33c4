"""A folder that is whole or not there: one process fills it beside its place and renames it at the end."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil

from stmoe import errors
from stmoe.runs import directory as rundir
from stmoe.runs import owner


@contextlib.contextmanager
def new(target: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a new folder beside `target` that takes its place at the end, and vanishes after an error.

  `target` may be there with what a sweep writes of the commands that it runs: files `*.log`, which stay.
  """
  target = pathlib.Path(target)
  if target.exists() and (not target.is_dir() or any(file.suffix != '.log' for file in target.iterdir())):
    raise errors.UserError(f'{target} is there already and not an empty folder; choose another')
  path = target.parent / f'.{target.name}.partial'
  with rundir.own(path):
    try:
      _clear(path)                       # of what a kill left
      yield path
      (path / owner.FILE).unlink()
      _take_place(path, target)
    except BaseException:
      shutil.rmtree(path, ignore_errors=True)
      raise


def _clear(path):
  for leftover in [leftover for leftover in path.iterdir() if leftover.name != owner.FILE]:
    if leftover.is_dir() and not leftover.is_symlink():
      shutil.rmtree(leftover)
    else:
      leftover.unlink()


def _take_place(path, target):
  """Renames `path` to `target`, which may be a folder of logs: they move along, open or not."""
  try:
    for log in target.glob('*.log'):
      log.replace(path / log.name)
    path.replace(target)
  except OSError as error:
    raise errors.UserError(f'{target}: {error.strerror}') from error
