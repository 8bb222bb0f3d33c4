"""sweep.json in the folder of a sweep's runs: which sweep files, with which overrides, they are of."""

import json
import pathlib

from stmoe.sweep import plan
from stmoe.train import rundir

FILE = 'sweep.json'


def record(sweep, overrides):
  """Adds `sweep`, loaded with `overrides` for all its runs, to those of its folder, if that is there."""
  title, colon, argument = sweep.question.partition(':')
  known, file = plan.available().get(title), sweep.file.resolve()
  where = sweep.question if known and known.resolve() == file else f'{file}{colon}{argument}'
  entry, entries = dict(sweep=where, overrides=list(overrides)), recorded(sweep.workdir)
  if entry not in entries and sweep.workdir.is_dir():
    rundir.write(sweep.workdir / FILE, json.dumps([*entries, entry], indent=2) + '\n')


def recorded(workdir):
  """Returns the entries of sweep.json in `workdir`, dicts of sweep and overrides; [] without one."""
  file = pathlib.Path(workdir) / FILE
  return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else []
