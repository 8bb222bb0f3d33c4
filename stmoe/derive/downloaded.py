"""Downloaded folders read as runs: a folder is converted once, and the conversion kept in the user's cache.

Commands and notebooks learn here which run is meant, so a downloaded folder may stand wherever a run
directory does. Its conversion is a run directory like any other: what commands write about the model is
written there. It lies in `imported/KEY/NAME` of the cache folder and may be deleted at any time.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import hashlib
import pathlib
import shutil
import sys

import ml_collections

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import plugins
from stmoe.runs import directory as rundir
from stmoe.runs import owner


def _print(line):
  print(line, file=sys.stderr, flush=True)


def run_directory(name: str, say: Callable = _print) -> pathlib.Path:
  """Returns the run directory that the user names: by itself, its experiment, or the downloaded folder.

  say: called with a line of text about a conversion.
  """
  return resolved(experiment.run_directory(name), say)


def resolved(path: str | pathlib.Path, say: Callable = _print) -> pathlib.Path:
  """Returns `path`; where it is a downloaded folder, its conversion, which is made if need be.

  Raises UserError, as `convert.read` does, for a folder of no family.
  """
  path = pathlib.Path(path)
  return _conversion(path, say) if found(path) else path


def named(name: str, overrides: Sequence[str] = ()) -> tuple[ml_collections.ConfigDict, str]:
  """Returns (configuration, name) of an experiment, a run or a downloaded folder, which is not converted.

  overrides: see `experiment.override`.
  """
  if not found(name):
    return rundir.named(name, overrides)
  from stmoe.derive import shown
  return shown.opened(name, overrides)[0], str(name)


def found(path: str | pathlib.Path) -> bool:
  """Returns whether `path` is a downloaded folder.

  That is one whose config.json is of a model, and of no run, or a checkpoint of T5X.
  """
  file = pathlib.Path(path) / 'config.json'
  if any(file.parent.glob('*/.zarray')):                             # is quickly seen: nothing is imported
    from stmoe.interop import t5x
    return t5x.found(path)
  if not file.is_file() or (file.parent / 'checkpoints').is_dir():
    return False
  fields = files.read_json(file)
  return not set(rundir.SECTIONS) <= set(fields) and (
      'model_type' in fields or 'architectures' in fields or any(file.parent.glob('*.safetensors')))


def key(folder: str | pathlib.Path) -> str:
  """Returns 16 hex digits of what decides how folder `folder` is converted.

  That is every file that a conversion reads, and the code that reads it, plugins included. Tensors count as
  `tensors.fingerprint` or `t5x.fingerprint` says, all other files with their bytes.
  """
  from stmoe.derive.conversion import importing
  from stmoe.interop import t5x
  from stmoe.interop import tensors
  folder, digest = pathlib.Path(folder), hashlib.sha256()
  own = pathlib.Path(__file__).parents[1]
  code = sorted([*(own / 'derive').rglob('*.py'), *(own / 'interop').rglob('*.py')])
  code += [plugin.path for plugin in plugins.known()
           if any(package.startswith('stmoe.interop.') for package in plugin.packages)]
  beside = [tensors.inside(folder, name) for name in (*importing.BESIDE, tensors.INDEX)]
  for file in [*code, *(file for file in beside if file.is_file())]:
    digest.update(f'{file.name} {hashlib.sha256(files.read_bytes(file)).hexdigest()}\n'.encode())
  for line in (t5x if t5x.found(folder) else tensors).fingerprint(folder):
    digest.update(f'{line}\n'.encode())
  return digest.hexdigest()[:16]


def cache() -> pathlib.Path:
  """Returns the folder of all conversions, which may not be there yet."""
  from stmoe.data.text import cache as caches
  return caches.folder() / 'imported'


def _conversion(path, say):
  """The run directory made of folder `path`, by this process or an earlier one."""
  target = cache() / key(path) / _name(path)
  if _whole(target, say):
    say(f'{path} was converted before: {target} is read')
    return target
  with _alone(rundir.make(target.parents[1]), say):
    if not _whole(target, say):                                      # which another process may have made
      _convert(path, target, say)
  return target


def _convert(path, target, say):
  from stmoe.derive import convert
  shutil.rmtree(target, ignore_errors=True)
  say(f'{path} is converted once, into {target}')
  try:
    convert.read(path, target, say=say)
  except BaseException:
    with contextlib.suppress(OSError):                               # where something else is in it
      target.parent.rmdir()
    raise


def _name(path):
  """The name of a model: of its folder, or of its repository in the cache of huggingface_hub."""
  path = path.resolve()
  return path.parents[1].name.rpartition('--')[2] if path.parent.name == 'snapshots' else path.name


def _whole(target, say):
  """Whether a conversion is there, and as it was made."""
  if not target.is_dir():
    return False
  try:
    rundir.opened(target)
  except errors.UserError as error:
    say(f'{error}; the conversion is made again')
    return False
  return True


@contextlib.contextmanager
def _alone(folder, say):
  """Context in which no other process converts into the cache `folder`."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(owner.hold(folder, say=say))
    except errors.UserError as busy:
      say(f'waiting for another conversion: {busy}')
      stack.enter_context(owner.hold(folder, patience=float('inf'), say=say))
    yield
