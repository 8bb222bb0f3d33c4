"""The conversions of downloaded folders in the user's cache: which there are, and which nobody reads."""

from collections.abc import Iterable
import contextlib
import dataclasses
import pathlib
import shutil

from stmoe import errors
from stmoe.derive import downloaded
from stmoe.runs import owner
from stmoe.runs import records


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A conversion: run directory `path`, the folder `source` it is of, `size` in bytes, time in seconds.

  source: None = not known.
  old:    no folder is read from it: its own is gone or has changed, or was converted by another version.
  """
  path: pathlib.Path
  source: pathlib.Path | None
  size: int
  made: float
  old: bool


def all_of(folder: pathlib.Path) -> list[Conversion]:
  """Returns the Conversions in the folder `downloaded.cache()` or another one, the newest first."""
  runs = [path for path in folder.glob('*/*') if path.is_dir()]
  return sorted((_opened(path) for path in runs), key=lambda one: (-one.made, one.path))


def delete(folder: pathlib.Path, conversions: Iterable[Conversion]) -> None:
  """Deletes Conversions in `folder`; raises UserError while another process converts there."""
  with owner.hold(folder):
    for one in conversions:
      shutil.rmtree(one.path, ignore_errors=True)
      with contextlib.suppress(OSError):                             # a model may have two names
        one.path.parent.rmdir()


def _opened(path):
  source = _source(path)
  size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
  old = source is None or _key(source) != path.parent.name
  return Conversion(path, source, size, path.stat().st_mtime, old)


def _source(path):
  """The folder that a conversion is of, None where the conversion does not say it: it is not whole."""
  try:
    name = records.imported(path).get('source')
  except errors.UserError:
    return None
  return pathlib.Path(name) if isinstance(name, str) else None


def _key(source):
  """The key of a folder, '' where it is none that is read."""
  try:
    return downloaded.key(source) if downloaded.found(source) else ''
  except errors.UserError:
    return ''
