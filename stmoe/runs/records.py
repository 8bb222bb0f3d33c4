"""What the files of a run directory hold, each checked for its form: errors.Damaged names file and reason.

config.json  env.json  metrics.jsonl  evals.jsonl  DONE  best.json  imported.json  router_stats/<step>.npz
shown/<step>.npz  ancestry.json  and what earlier versions wrote instead: finetune.json  upcycle.json
"""

import math
import pathlib

from stmoe import errors
from stmoe import experiment
from stmoe import files

ROUTING, SHOWN = 'routing.json', 'shown'
BIG_BENCH = 'results_big_bench.json'      # of `stmoe eval --tasks`, among the results of other tasks


def _instead(path):
  """'; ...', what may be meant by the folder `path`, which is no run directory, or ''."""
  if path.is_dir():
    inside = _names(path)
    return f'; it has the runs {", ".join(inside)} inside' if inside else ''
  like = errors.nearest(path.name, _names(path.parent)) if path.parent.is_dir() else ''
  return like or experiment.instead_of(str(path))


def _names(folder):
  """The names of the runs in a folder."""
  return sorted(file.parent.name for file in folder.glob('[!.]*/config.json'))


def config(path):
  """Returns the dict in config.json of run directory `path`, groups of fields being dicts.

  Raises UserError without the file.
  """
  file = pathlib.Path(path) / 'config.json'
  if not (file.exists() or file.is_symlink()):
    raise errors.UserError(f'{path} is not a run directory: it has no config.json{_instead(file.parent)}')
  fields = files.read_json(file)
  _must(file, is_number(fields.get('seed', 0)), 'seed is no number')
  for group in ('data', 'model', 'blocks', 'train', 'eval', 'losses'):
    _must(file, isinstance(fields.get(group, {}), dict), f'{group} is no group of fields')
  data, blocks = fields.get('data', {}), fields.get('blocks', {})
  for field in ('task', 'vocab'):
    _must(file, isinstance(data.get(field, ''), str), f'data.{field} is no text')
  mixture = data.get('mixture') or []
  names = [entry[0] if isinstance(entry, list) and entry else entry for entry in mixture
           ] if isinstance(mixture, list) else [None]
  _must(file, all(isinstance(name, str) for name in names), 'data.mixture is no list of tasks')
  for letter, block in blocks.items():
    _block(file, f'blocks.{letter}', block)
  return fields


def _block(file, where, block):
  """Checks a section of layers and the layers it wraps."""
  while block is not None:
    _must(file, isinstance(block, dict) and isinstance(block.get('layer', ''), str), f'{where} is no layer')
    router = block.get('router', {'name': ''})
    _must(file, isinstance(router, dict) and isinstance(router.get('name'), str), f'{where}.router is none')
    attention = block.get('attention', True)
    if isinstance(attention, dict):
      _must(file, isinstance(attention.get('name'), str), f'{where}.attention is none')
      _block(file, f'{where}.attention', attention)
    where, block = f'{where}.inner', block.get('inner')


def environment(path):
  """Returns the dict in env.json, {} without one."""
  file = pathlib.Path(path) / 'env.json'
  facts = _optional(file) or {}
  command = facts.get('command') or []
  _must(file, isinstance(command, list) and all(isinstance(word, str) for word in command),
        'command is no list of words')
  for field, kind in (('revision', str), ('python', str), ('devices', dict), ('packages', dict)):
    _must(file, isinstance(facts.get(field), (kind, type(None))), f'{field} is no {kind.__name__}')
  added = facts.get('plugins') or []
  _must(file, isinstance(added, list) and all(isinstance(one, dict) and all(
      isinstance(one.get(field), str) for field in ('kind', 'name', 'file')) and isinstance(
          one.get('imports', []), list) for one in added), 'plugins have not kind, name, file and imports')
  return facts


def imported(path):
  """Returns the dict in imported.json: family, dtype, dtypes by tensor, copies; {} for a run trained here."""
  file = pathlib.Path(path) / 'imported.json'
  found = _optional(file)
  if found is None:
    return {}
  text = lambda values: all(isinstance(value, str) for value in values)
  dtypes, copies = found.get('dtypes'), found.get('copies')
  good = isinstance(dtypes, dict) and isinstance(copies, list) and text(
      [found.get('family'), found.get('dtype'), *dtypes.values(), *copies])
  _must(file, good, 'has not family, dtypes and copies')
  return found


def family(path: str | pathlib.Path) -> str | None:
  """Returns the family in whose files run `path`, or what it was fine-tuned from, came; None if in none."""
  return imported(path).get('family') or ancestry(path).get('facts', {}).get('family')


def ancestry(path: str | pathlib.Path) -> dict:
  """Returns how run directory `path` was made of other runs, dict(facts, lineage); {} if it was trained.

  facts:   dict, what the method found out when it made this run.
  lineage: list of how this run and all before it were made, this run first: dicts of `method`, `options` and
    `parents`. A parent is a dict of `run`, `step`, the digests `config` and `checkpoint` (None if unknown),
    and `made`. `made` is the place in the list of how the parent itself was made; None = it was trained.
    Entries and parents may have a `command`, the line that was typed; None = another program made them.
  """
  path = pathlib.Path(path)
  for name, form in LINEAGES.items():
    values = _optional(path / name)
    if values is not None:
      try:
        values = form(values)
        _lineage(**values)
      except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise errors.Damaged(path / name,
                             f'does not say how the run was made: {files.reason(error)}') from None
      return values
  return {}


def _lineage(facts, lineage):
  """Raises ValueError, or what wrong types raise, unless the arguments are what `ancestry` returns."""
  text, place = (str, type(None)), (int, type(None))
  if not isinstance(facts, dict) or not isinstance(lineage, list) or not lineage:
    raise ValueError('it has not facts and lineage')
  for number, entry in enumerate(lineage):
    if set(entry) - {'command'} != {'method', 'options', 'parents'} or not isinstance(entry['method'], str):
      raise ValueError(f'entry {number} has not method, options and parents')
    if not isinstance(entry['options'], dict) or not isinstance(entry['parents'], list):
      raise ValueError(f'entry {number} has not options and parents')
    for made in (entry, *entry['parents']):
      if not isinstance(made.get('command'), text):
        raise ValueError(f'entry {number} has {made["command"]!r:.40} for command')
    for parent in entry['parents']:
      kinds = dict(run=str, step=place, config=text, checkpoint=text, made=place)
      wrong = [key for key, kind in kinds.items() if not isinstance(parent[key], kind)]
      if wrong:
        raise ValueError(f'entry {number} has {parent[wrong[0]]!r:.40} for {wrong[0]}')
      # Parents stand behind their children, so that nothing descends from itself.
      if parent['made'] is not None and not number < parent['made'] < len(lineage):
        raise ValueError(f'entry {number} has a parent made by entry {parent["made"]} of {len(lineage)}')


def _alone(method, options, parents, facts):
  """What `ancestry` returns for a run of an earlier version: of parents only (run, step) is known."""
  parents = [dict(run=run, step=step, config=None, checkpoint=None, made=None) for run, step in parents]
  return dict(facts=facts, lineage=[dict(method=method, options=options, parents=parents)])


def _of_finetuning(found):
  return _alone('finetune', found['recipe'], [(found['start'], found['step'])], found)


def _of_upcycling(found):
  options = {key: found[key] for key in ('noise', 'granularity', 'optimizer')}
  return _alone('upcycle', options, [(run['run'], run['step']) for run in found['runs']], found)


def _of_import(found):
  sources = [(found['source'], None)] if 'source' in found else []
  return _alone('convert', dict(family=found['family']), sources, {})


# The files that say how a run was made of other runs; the first file that is there counts.
LINEAGES = {
    'ancestry.json': lambda found: dict(facts=found['facts'], lineage=found['lineage']),
    'finetune.json': _of_finetuning,
    'upcycle.json': _of_upcycling,
    'imported.json': _of_import,
}


def metrics(path, bad=None):
  """Returns the lines of metrics.jsonl, dicts of `step` and numbers or None; [] of a run that has none yet.

  The key `time` is a dict of numbers, see `flat`; in runs of an earlier version it is the seconds. A reader
  of a finished run raises errors.Damaged where there is no line.

  bad: called with errors.Damaged for each damaged line, which is left out, where a process writes the file
    on; None = the error is raised.
  """
  file = pathlib.Path(path) / 'metrics.jsonl'
  lines = files.read_lines(file, check=check_line, bad=bad, nan=True)
  _must(file, lines or bad or not file.with_name('DONE').exists(), 'has no line, and the run is finished')
  return lines


def flat(line: dict) -> dict:
  """Returns a line of metrics that holds numbers only: `time` is its seconds, beside what else it held.

  >>> flat({'step': 3, 'time': {'seconds': 1.5, 'tokens_per_s': 200.0}, 'loss/ce': 2.0})
  {'step': 3, 'time': 1.5, 'tokens_per_s': 200.0, 'loss/ce': 2.0}
  """
  found: dict = {}
  for name, value in line.items():
    inner = value if isinstance(value, dict) else {name: value}
    found |= {'time' if inside == 'seconds' else inside: number for inside, number in inner.items()}
  return found


def check_line(line):
  """Raises ValueError unless the dict `line` has a step, and numbers or None in all other fields.

  The field `time` may hold a dict of numbers or None.
  """
  step = line.get('step')
  if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 63:
    raise ValueError('has no step' if step is None else f'has {step!r:.40} for a step')
  time = line.get('time')
  fields = line | time | dict(time=None) if isinstance(time, dict) else line
  wrong = [field for field, value in fields.items() if value is not None and not is_number(value)]
  if wrong:
    raise ValueError(f'has {fields[wrong[0]]!r:.40} for {wrong[0]!r:.80}, which is no number')


def is_number(value):
  """Returns whether `value` is a finite number."""
  try:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  except OverflowError:
    return False


def done(path):
  """Returns the final metrics in DONE, as `flat` has them; None if the run is not finished."""
  values = _numbers(pathlib.Path(path) / 'DONE')
  return None if values is None else flat(values)


def _numbers(file):
  values = _optional(file)
  if values is not None:
    try:
      check_line(values)
    except ValueError as error:
      raise errors.Damaged(file, str(error)) from error
  return values


def evaluations(path):
  """Returns the lines of evals.jsonl, dicts of step, field, value and 'eval/...' metrics; [] if none."""
  def check(line):
    if not isinstance(line.get('field'), str) or 'value' not in line:
      raise ValueError('has no field and value')
    check_line({key: value for key, value in line.items() if key not in ('field', 'value')})
  return files.read_lines(pathlib.Path(path) / 'evals.jsonl', check=check, nan=True)


def scores(path):
  """Returns the records of tasks in results.json and results_TASK.json: dicts with `step` and `scores`."""
  found = []
  for file in sorted(pathlib.Path(path).glob('results*.json')):
    values = _optional(file)
    named = values.get('scores')
    good = isinstance(values.get('step'), int) and isinstance(named, dict)
    _must(file, good and all(value is None or is_number(value) for value in named.values()),
          'has no step and scores')
    found.append(values)
  return found


NO_BEST = dict(step=-1, name='', value=None)


def best(path):
  """Returns dict(step, name, value) of the best checkpoint; without such a checkpoint step -1, value None."""
  file = pathlib.Path(path) / 'best.json'
  values = _optional(file)
  if values is None:
    return NO_BEST
  steps = isinstance(values.get('step'), int) and isinstance(values.get('name'), str)
  _must(file, steps and is_number(values.get('value')), 'has not step, name and value of a checkpoint')
  return values


def routing(path):
  """Returns what `stmoe routing` wrote about a run (`answer.routing.diagnose`), or None."""
  file = pathlib.Path(path) / ROUTING
  found = _optional(file)
  if found is None:
    return None
  number = lambda value: value is None or is_number(value)
  tables = lambda key, inside: isinstance(found.get(key), dict) and all(map(inside, found[key].values()))
  numbers = lambda values: isinstance(values, dict) and all(
      number(value) for value in values.values() if not isinstance(value, list))
  whole = lambda layer: numbers(layer) and _square(layer.get('coactivation'))
  layered = lambda layers: isinstance(layers, dict) and all(map(numbers, layers.values()))
  counted = all(isinstance(found.get(name), int) for name in ('step', 'tokens'))
  _must(file, counted, 'has no step or tokens')
  _must(file, tables('layers', whole) and found['layers'], 'has no layers with their numbers')
  _must(file, tables('against', layered) and all(step.isdecimal() for step in found['against']) and
        tables('domains', layered), 'compares layers with what are none')
  _must(file, tables('dropped', number) and tables('temperatures', number) and number(found.get('loss')) and
        all(count.isdecimal() for count in found['dropped']), 'has no losses')
  _must(file, number(found.get('universality')) and isinstance(found.get('notes'), list), 'is cut short')
  return found


def calibration(path):
  """Returns dict shots -> list of (examples, how many are right, sum of their confidence); {} if none.

  They are of all tasks with choices of `stmoe eval --tasks` (`answer.task_files.record`).
  """
  file = pathlib.Path(path) / BIG_BENCH
  found = (_optional(file) or {}).get('calibration', {})
  row = lambda bins: isinstance(bins, list) and len(bins) == 3 and all(map(is_number, bins))
  good = isinstance(found, dict) and all(
      shots.isdecimal() and isinstance(bins, list) and all(map(row, bins)) for shots, bins in found.items())
  _must(file, good, 'has no bins of calibration')
  return {int(shots): bins for shots, bins in found.items() if bins}


def _square(rows):
  """Whether `rows` is a list of E lists of E numbers."""
  return isinstance(rows, list) and bool(rows) and all(
      isinstance(row, list) and len(row) == len(rows) and all(map(is_number, row)) for row in rows)


def stats(path, after=-1):
  """Yields (step, loads, states) of router_stats/<step>.npz with steps later than `after`, in their order.

  loads: dict layer -> f32[E]. states: dict layer -> dict path in the layer -> f32[E] or f32[].
  """
  folder, sizes = pathlib.Path(path) / 'router_stats', {}
  later = (file for file in folder.glob('*.npz') if file.stem.isdecimal() and int(file.stem) > after)
  for file in sorted(later, key=lambda file: int(file.stem)):
    loads, states = _stats(file)
    inside = {f'{layer}/{key}': value for layer, found in states.items() for key, value in found.items()}
    for name, value in (loads | inside).items():
      same = sizes.setdefault(name, value.shape) == value.shape
      _must(file, same, f'{name} has {value.size} numbers where earlier steps have {sizes[name]}')
    yield int(file.stem), loads, states


def newest_loads(path):
  """Returns dict layer -> f32[E] of the newest file of router_stats; {} without any."""
  folder = pathlib.Path(path) / 'router_stats'
  files_by_step = {int(file.stem): file for file in folder.glob('*.npz') if file.stem.isdecimal()}
  return _stats(files_by_step[max(files_by_step)])[0] if files_by_step else {}


def shown(path):
  """Returns (step, dict name -> f32 array) of the last shown/<step>.npz, (0, {}) without one."""
  written = [file for file in (pathlib.Path(path) / SHOWN).glob('*.npz') if file.stem.isdecimal()]
  if not written:
    return 0, {}
  last = max(written, key=lambda file: int(file.stem))
  arrays = files.read_arrays(last)
  for name, array in arrays.items():
    _must(last, array.dtype.kind == 'f', f'has no numbers in {name}')
  return int(last.stem), arrays


def _stats(file):
  """(loads, states) of a file of router_stats."""
  import numpy as np                     # other files are read without numpy
  content = files.read_arrays(file)
  rows, names = content.get('moe_load'), content.get('layers')
  real = lambda x: x.dtype.kind in 'fiu'
  _must(file, rows is not None and rows.ndim == 2 and real(rows), 'has no moe_load of layers and experts')
  _must(file, names is not None and names.dtype.kind == 'U' and names.shape == rows.shape[:1] and
        len(set(names.tolist())) == len(rows), f'has not the names of {len(rows)} layers')
  states = {}
  for key, value in content.items():
    if key.startswith('state/'):
      good = key.count('/') == 2 and value.ndim < 2 and real(value)
      _must(file, good, f'has no state of a router in {key}')
      _, layer, name = key.split('/')
      states.setdefault(layer, {})[name] = value
  return {str(name): row[np.isfinite(row)] for name, row in zip(names, rows)}, states


def _optional(file):
  """The dict in a file of JSON, None if there is no such file."""
  return files.read_json(file) if file.exists() or file.is_symlink() else None


def _must(file, holds, reason):
  if not holds:
    raise errors.Damaged(file, reason)
