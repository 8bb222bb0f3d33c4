"""What a downloaded folder holds, and whether this machine holds it: by its headers alone."""

from collections.abc import Iterator
from collections.abc import Sequence
import collections
import os
import pathlib

import jax
import ml_collections

from stmoe import errors
from stmoe import files as documents
from stmoe.analysis import flops
from stmoe.derive.conversion import importing
from stmoe.interop import rules
from stmoe.interop import t5x
from stmoe.interop import tensors as files
from stmoe.train import state as states

LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')   # of a container
UNITS = ('bytes', 'kB', 'MB', 'GB', 'TB')


def lines(folder: str | pathlib.Path, overrides: Sequence[str] = ()) -> Iterator[str]:
  """Yields lines about a downloaded folder; the last one says why it is not supported, if so.

  overrides: see `convert.read`.
  """
  folder = pathlib.Path(folder)
  yield from _stored(folder)
  try:
    cfg, plan = opened(folder, overrides)
  except errors.UserError as error:
    yield f'not supported: {error}'
    return
  yield from _model(cfg)
  yield from _memory(plan)


def opened(folder: str | pathlib.Path,
           overrides: Sequence[str] = ()) -> tuple[ml_collections.ConfigDict, states.Blueprint]:
  """Returns (configuration, Blueprint) of the run that `convert.read` would make of a folder.

  Raises UserError as `convert.read` does, but for vocabularies.
  """
  _, family, sections, tensors, _ = importing.opened(pathlib.Path(folder))
  cfg = importing.configuration(sections, overrides)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan, placed = importing.planned(cfg, mesh, family, tensors)
  importing.unplaced(cfg, family, placed, tensors)
  return cfg, plan


def _stored(folder):
  """Lines about what the files say by themselves, whatever the model is."""
  if t5x.found(folder):
    tensors, name = t5x.tensors(folder), 'of T5X'
  else:
    hf = documents.read_json(files.inside(folder, 'config.json'))
    tensors = files.tensors(folder)
    named = ', '.join(map(str, hf.get('architectures') or ['no architecture named']))
    name = f'{hf.get("model_type")} ({named})'
  sizes: collections.Counter = collections.Counter()
  for tensor in tensors.values():
    sizes[tensor.dtype] += tensor.size
  kinds = ', '.join(f'{dtype} {size(number)}' for dtype, number in sizes.most_common())
  number = len({getattr(tensor, 'file', folder) for tensor in tensors.values()})
  yield f'family      {name}'
  yield f'tensors     {len(tensors):,} in {number} file(s): {kinds}'
  there = [name for name in importing.BESIDE if name != 'config.json' and (folder / name).is_file()]
  yield f'beside      {", ".join(there) or "no vocabulary, no tokenizer: --config.data.vocab=FILE gives one"}'


def _model(cfg):
  """Lines about the model of a configuration."""
  number, model = flops.parameters(cfg), cfg.model
  stacks = [stack for stack in ('encoder', 'decoder', 'layers') if stack in model]
  layers = ' + '.join(str(len(rules.letters(model[stack]))) for stack in stacks)
  yield f'parameters  {number["total"]:,}, of which a token uses {number["active"]:,}'
  yield f'sizes       {layers} layers, width {model.d_model:,}, vocabulary {model.vocab_size:,}'


def _memory(plan):
  """The line about the parameters' memory, and about that of this machine."""
  arrays = jax.tree.leaves(plan.shapes['params'])
  needed = sum(x.size * x.dtype.itemsize for x in arrays)
  kinds = ' and '.join(sorted({str(x.dtype) for x in arrays}))
  room, where = memory()
  verdict = 'fits' if needed < room else 'does not fit'
  yield f'memory      {size(needed)} as {kinds}; {where} has {size(room)} free: {verdict}'


def memory() -> tuple[int, str]:
  """Returns (bytes that are free for a model, where): of all accelerators together, else of this machine."""
  limits = [(device.memory_stats() or {}) for device in jax.local_devices() if device.platform != 'cpu']
  if limits:
    free = sum(stats.get('bytes_limit', 0) - stats.get('bytes_in_use', 0) for stats in limits)
    return free, f'{len(limits)} x {jax.local_devices()[0].device_kind}'
  return _host_memory(), 'this machine'


def _host_memory():
  """The bytes that a process may take here: what is free, and no more than its container allows."""
  try:
    rows = dict(line.split(':', 1) for line in pathlib.Path('/proc/meminfo').read_text().splitlines())
    free = int(rows['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')  # all there is: nothing says what is free
  for limit in map(pathlib.Path, LIMITS):
    text = limit.read_text().strip() if limit.is_file() else ''
    free = min(free, int(text)) if text.isdigit() else free
  return free


def size(number: float) -> str:
  """Returns a number of bytes as text.

  >>> size(999), size(1_340_000_000), size(2e15), size(999_999_999)
  ('999 bytes', '1.34 GB', '2000.00 TB', '1.00 GB')
  """
  unit = 0
  while round(number, 2) >= 1000 and unit < len(UNITS) - 1:
    number, unit = number / 1000, unit + 1
  return f'{number:.2f} {UNITS[unit]}' if unit else f'{number} {UNITS[0]}'
