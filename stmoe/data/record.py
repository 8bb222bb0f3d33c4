"""data.json of a run directory: the data that the run reads, so that it goes on with the same data.

It is written when a run begins, with its own digest (store.py), and holds
  data        the fields of the configuration that say what the data are, and those of the vocabulary
  files       of the user: path, size, mtime (ns) and sha256 as they were read. Of a corpus that is not held
              whole a `sample` (store.py) stands for the sha256
  caches      task -> path and key of what was made of them
  metrics     task -> names of its metrics
  vocabulary  file and sha256 of the vocabulary, kept in the run's folder `data`; null for bytes and labels. A
              tokenizer.json has `beside`, too: a list of the same of the files that belong to it
  tables      path in the configuration -> file and sha256, alike, of tables that modules read
  facts       what the source of the data found out of them and later reading needs: scales, names of classes

The run's data may be opened later: by training that goes on, evaluation, generation, reports. Then the caches
and the vocabulary named here are taken, and the files are not needed. `notes` says which files have changed.
A run without data.json, of an older version or imported, reads what its configuration says.
"""

import copy
import dataclasses
import json
import os
import pathlib
import shutil

from stmoe import errors
from stmoe import lookup
from stmoe.data import store
from stmoe.data.text import cache as caches
from stmoe.data.text import tokenizer

FILE, FOLDER = 'data.json', 'data'
IMPORTED = 'vocabulary'                  # folder of the vocabulary of an imported run
VOCABULARY = ('vocab', 'extra_ids')
DIGEST = 'sha256'
DIGESTS = {DIGEST: store.sha256, 'sample': store.sample}


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of the data of the run in `path`; `values` are data.json's, {} without the file."""
  path: pathlib.Path
  values: dict
  damage: str = ''

  def known(self, source):
    """Returns dict task -> dict(path, key) of the run's caches; {} if `source` is of other data."""
    return self.values['caches'] if self.values and self._same(described(source)) else {}

  def facts(self, source):
    """Returns what the run found out of its data, for a source of its kind and columns; {} for others."""
    columns = {field: value for field, value in described(source).items() if field != 'files'}
    return self.values.get('facts', {}) if self.values and self._same(columns) else {}

  def vocabulary(self, source, make):
    """Returns the run's own vocabulary; what `make` gives if there is none, or `source` wants another."""
    entry = self.values.get('vocabulary')
    entry = entry if entry and self._same(_vocabulary(source)) else None
    if entry and (file := self._own(entry)):
      return tokenizer.opened(file, source.extra_ids)
    if source.vocab and not os.path.exists(source.vocab):            # of an imported run that was moved
      for folder in (self.path, self.path / IMPORTED):
        if (moved := folder / pathlib.Path(source.vocab).name).is_file():
          return tokenizer.opened(moved, source.extra_ids)
    built = make()
    if entry and store.sha256(built.path) != entry['sha256']:
      raise errors.UserError(f'{self.path / entry["file"]} is gone or damaged, and data.vocab='
                             f'{source.vocab!r} makes another vocabulary now: its text has changed')
    return built

  def kept(self, source, name, make):
    """Returns the `store.Kept` of task `name`: the run's own, or what `make` gives where it is lost."""
    try:
      return self.opened(source, name)
    except errors.Damaged as damage:
      return self._again(name, damage, make)

  def opened(self, source, name):
    """Returns the `store.Kept` of task `name`: the run's own; errors.Damaged where it is lost."""
    path = pathlib.Path(self.known(source)[name]['path'])
    moved_here = caches.folder(source.cache_dir) / path.name
    path = moved_here if moved_here.is_dir() else path
    if not path.is_dir():
      raise errors.Damaged(path, 'is gone')
    return store.Kept(path, store.check(path))

  def _again(self, name, damage, make):
    lost = f'{self.path}: the cache of its data is lost ({damage}) and cannot be made again'
    try:
      remade = make()
    except errors.UserError as error:
      raise errors.UserError(f'{lost}: {error}') from error
    if remade.key != self.values['caches'][name]['key']:
      changes = [f'{file["path"]} {state}' for file in self.values['files'] if (state := changed(file))]
      raise errors.UserError(f'{lost}: {", ".join(changes) or f"task {name} has other text now"}')
    return remade

  def located(self, cfg):
    """Returns configuration `cfg` with the run's own copies for the tables it names."""
    tables = {path: str(self._own(entry)) for path, entry in self.values.get('tables', {}).items()
              if self._own(entry)}
    if not tables:
      return cfg
    cfg = copy.deepcopy(cfg)
    with cfg.unlocked():
      _replace(cfg, tables)
    return cfg

  def notes(self):
    """Yields a line for damage of data.json, and for each file that is gone or has changed since."""
    if self.damage:
      yield f'note: {self.damage}; the data are read from their files again'
    for entry in self.values.get('files', ()):
      if state := changed(entry):
        yield f'note: {entry["path"]} {state} since this run read it; the run keeps to what it read'

  def _same(self, fields):
    """Whether the run's data have these values of fields; an absent value counts as empty."""
    recorded = self.values['data']
    return all((recorded.get(field) or None) == (value or None) for field, value in fields.items())

  def _own(self, found):
    """The path of a file that the run keeps, or None where it or one beside it is gone or damaged."""
    for entry in (found, *found.get('beside', ())):
      file = self.path / entry['file']
      if not file.is_file() or store.sha256(file) != entry['sha256']:
        return None
    return self.path / found['file']


NONE = Record(pathlib.Path(), {})


def read(run):
  """Returns the Record of run directory `run`; a damaged data.json counts as none, and `notes` say so."""
  if run is None:
    return NONE
  path = pathlib.Path(run)
  if not (path / FILE).exists():
    return Record(path, {})
  try:
    return Record(path, store.verified(path / FILE))
  except errors.Damaged as error:
    return Record(path, {}, str(error))


def described(source):
  """Returns dict, as JSON has it, of all that says what the data of `source` are."""
  content = dict(objective=source.kind, **source.content()) | _vocabulary(source)
  return json.loads(json.dumps(content, default=lambda section: section.to_dict()))


def _vocabulary(source):
  """Dict of the fields that say which vocabulary a source has; {} for a source without."""
  return {field: getattr(source, field) for field in VOCABULARY if hasattr(source, field)}


def seen(paths, digest=DIGEST):
  """Returns what data.json says of files: a list of dict(path, size, mtime, sha256).

  digest: the name of a function of store.py. `sample` takes the place of sha256 where files are too large.
  """
  entries = []
  for path in dict.fromkeys(str(pathlib.Path(path).absolute()) for path in paths):
    if os.path.isfile(path):             # a path without a file is a mistake, which the reader of it names
      stat = os.stat(path)
      entries.append(dict(path=path, size=stat.st_size, mtime=stat.st_mtime_ns) | {
          digest: DIGESTS[digest](path)})
  return entries


def changed(known):
  """Returns 'is gone' or 'has changed' of a file that `seen` described, or ''."""
  try:
    stat = os.stat(known['path'])
    if (stat.st_size, stat.st_mtime_ns) == (known['size'], known['mtime']):
      return ''
    digest = next(name for name in DIGESTS if name in known)
    same = stat.st_size == known['size'] and DIGESTS[digest](known['path']) == known[digest]
    return '' if same else 'has changed'
  except (OSError, errors.Damaged):
    return 'is gone'


def write(run, cfg, source, tables=()):
  """Writes data.json and the files that data.json keeps, unless `source` was opened from data.json.

  Args:
    source: the opened data of `cfg`, see `batches.source`.
    tables: paths of files that the model's modules read.
  """
  path = pathlib.Path(run)
  if source.recorded:
    return
  (path / FOLDER).mkdir(exist_ok=True)
  values = dict(
      data=described(lookup.source(cfg.data)), files=source.files,
      caches={name: dict(path=str(where.absolute()), key=source.keys[name])
              for name, where in source.caches.items()},
      metrics=source.metrics,
      vocabulary=_keep_vocabulary(path, source.vocabulary),
      tables={str(table): _keep(path, table, f'table{number}.npz') for number, table in enumerate(tables)},
      facts=getattr(source, 'facts', {}))
  store.write(path / FILE, values)


def _keep_vocabulary(run, vocabulary):
  """What data.json says of the files of a vocabulary, which are copied; None of one without files."""
  kept = [_keep(run, file, name) for name, file in getattr(vocabulary, 'files', {}).items()]
  return kept[0] | (dict(beside=kept[1:]) if kept[1:] else {}) if kept else None


def _keep(run, file, name):
  """Copies `file` into the run's folder, as `name`; returns dict(file, sha256)."""
  to = run / FOLDER / name
  if not (to.exists() and os.path.samefile(file, to)):
    part = to.with_name(f'.{name}.{os.getpid()}.tmp')
    shutil.copyfile(file, part)
    part.replace(to)
  return dict(file=f'{FOLDER}/{name}', sha256=store.sha256(to))


def _replace(section, tables):
  for key, value in section.items():
    if hasattr(value, 'items'):
      _replace(value, tables)
    elif isinstance(value, str) and value in tables:
      section[key] = tables[value]
