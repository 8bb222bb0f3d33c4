"""sweep.json in the folder of a sweep's runs says which sweep files, with which overrides, made the runs."""

import pathlib

from stmoe import errors
from stmoe import files
from stmoe.runs import owner
from stmoe.sweep import plan

FILE = 'sweep.json'
PATIENCE = 10.0                          # seconds to wait for another sweep to write its line


def record(sweep, overrides):
  """Adds `sweep`, loaded with `overrides` for all its runs, to the entries of its folder, if there."""
  title, colon, argument = sweep.question.partition(':')
  listed, file = plan.available().get(title), sweep.file.resolve()
  where = sweep.question if listed and listed.resolve() == file else f'{file}{colon}{argument}'
  entry = dict(sweep=where, overrides=list(overrides))
  if entry not in recorded(sweep.workdir) and sweep.workdir.is_dir():
    with owner.hold(sweep.workdir, PATIENCE):                        # several sweeps each add an entry
      files.write_json(sweep.workdir / FILE, [*recorded(sweep.workdir), entry])


def recorded(workdir):
  """Returns the entries of sweep.json in `workdir`, dicts of sweep and overrides; [] without the file."""
  file = pathlib.Path(workdir) / FILE
  if not (file.exists() or file.is_symlink()):
    return []
  entries, text = files.read_json(file, list), lambda value: isinstance(value, str)
  for entry in entries:
    overrides = entry.get('overrides') if isinstance(entry, dict) else None
    if not isinstance(overrides, list) or not all(map(text, [entry.get('sweep'), *overrides])):
      raise errors.Damaged(file, 'is no list of sweeps with their overrides')
  return entries
