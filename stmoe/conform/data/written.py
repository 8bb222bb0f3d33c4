"""Files that checks read and write, in a folder that goes with the process."""

import atexit
import functools
import pathlib
import shutil
import tempfile


@functools.cache
def folder() -> pathlib.Path:
  """Returns the folder, for caches."""
  path = pathlib.Path(tempfile.mkdtemp(prefix='stmoe-check-'))
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  return path


@functools.cache
def texts() -> tuple[str, str]:
  """Returns the paths of two files of 300 lines, a document each."""
  paths = [folder() / f'{word}.txt' for word in ('tokens', 'experts')]
  for path in paths:
    lines = (f'{number} {path.stem} of {number * number}, ' * (1 + number % 5) for number in range(300))
    path.write_text('\n'.join(lines), encoding='utf-8')
  return str(paths[0]), str(paths[1])
