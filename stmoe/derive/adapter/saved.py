"""Saves the adapter of a run alone, in PEFT's layout: a small folder beside a base that stays where it is."""

import hashlib
import json
import pathlib
import shutil

import numpy as np

from stmoe import errors
from stmoe import files as documents
from stmoe import lookup
from stmoe.checkpoints import stored
from stmoe.derive.conversion import exporting
from stmoe.derive.adapter import places
from stmoe.interop import peft
from stmoe.interop import tensors
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.runs import whole as beside
from stmoe.train import state as states

DIGEST = 'base'                          # of the base's numbers, in the header of the file of tensors


def write(run: str | pathlib.Path, target: str | pathlib.Path, to: str | None = None,
          step: int | None = None, form: str | None = None) -> tuple[int, dict]:
  """Writes the folder `target` with the adapter of run directory `run`; returns (step, dict of its Tensors).

  An imported adapter that has not trained comes back byte for byte.

  Args:
    to:   family whose names matrices have; None = that of the base's import, or else our paths.
    step: of the checkpoint; None = the newest.
    form: key of `peft.FORMS`, of the names of a MixLoRA; None = that of its import, or else the current one.
  Raises:
    UserError: the run has no adapter, one without names in such files, or no MixLoRA for a `form`; or what
      the adapter stands beside has changed since it was put there.
  """
  run = pathlib.Path(run)
  cfg, reader = rundir.opened(run, step), exporting.reader_of(run, step)
  found = places.Places(cfg, to or records.family(run))
  if not found.parts():
    raise errors.UserError(f'{run} has no adapter; nearest: stmoe convert without --adapter')
  _unchanged(run, found, reader.inventory)
  own = run / places.FOLDER
  record = documents.read_json(own / places.RECORD) if own.is_dir() else {}
  before, form = _forms(cfg, record, form)
  dtypes = [record.get('dtypes', {}).get(part.tensor, 'F32') for part in found.parts(before)]
  arrays = {part.tensor: _array(reader, found, part) for part in found.parts(form)}
  layout = {name: (dtype, array.shape) for (name, array), dtype in zip(arrays.items(), dtypes, strict=True)}
  header = record.get('metadata', {'format': 'pt', DIGEST: digest(found.base(reader.inventory))})
  with beside.new(target) as path:
    if record and form == before:
      shutil.copyfile(own / peft.CONFIG, path / peft.CONFIG)
    else:
      config = documents.read_json(own / peft.CONFIG) if record else _config(cfg, run, found)
      documents.write_json(path / peft.CONFIG, config | _strategy(cfg, form), sort_keys=True)
    created = tensors.create(path, layout, float('inf'), peft.STEM, header)
    for name, array in arrays.items():
      created[name].write(0, array)
  return reader.step, created


def digest(inventory: dict) -> str:
  """Returns the digest of arrays by their entries in a checkpoint's inventory: names, shapes, checksums."""
  facts = sorted((name, shape, total) for name, (shape, total, *_) in inventory.items())
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _beside(run):
  """The parent, of the ancestry of a run, that its adapter was put beside; None if no ancestor was one."""
  made = (entry for entry in records.ancestry(run).get('lineage') or ()
          if entry['method'] == 'adapter' or entry.get('options', {}).get('adapter'))
  return next((parent for entry in made for parent in entry['parents']), None)


def _unchanged(run, found, inventory):
  """Raises UserError where the base of a run's adapter is there and is not what the run has of it."""
  base = _beside(run)
  if base is None or base['step'] not in rundir.saved(base['run']):
    return
  before = exporting.reader_of(pathlib.Path(base['run']), base['step'])
  same = before.digest == base['checkpoint']                         # and not a later run of that name
  if same and digest(found.base(inventory)) != digest(found.base(before.inventory)):
    raise errors.UserError(f'{run} has changed what its adapter was put beside, {base["run"]}, so the adapter'
                           f' fits nothing; nearest: stmoe compress {run} merge_adapter --workdir MERGED')


def _array(reader, found, part):
  """The numpy array of a Part of an adapter, as it is in files."""
  one = found.slices[part.path]
  leaf = states.evaluated(('params', *one.leaf), reader.inventory)
  array = stored.read(reader.array(leaf), ... if one.layer is None else (one.layer,))
  array = np.asarray(array if part.expert is None else array[part.expert], np.float32)
  return array.T if part.turned else array


def _config(cfg, run, found):
  """The adapter_config.json of a configuration's adapter, but for `_strategy`."""
  low, modules = _low(cfg), sorted({_module(part) for part in found.parts() if part.path[-1] == 'a'})
  base = (_beside(run) or dict(run=str(run)))['run']
  task = 'SEQ_2_SEQ_LM' if lookup.encodes_inputs(cfg.model.name) else 'CAUSAL_LM'
  rate = low.pop('dropout_rate')
  section = _section(cfg)
  if section is None:
    short = peft.targets(modules, [site.module for site in found.sites])
    return peft.described(low, rate, short, base, task)
  short = sorted({module.rpartition('.')[2] for module in modules})
  return peft.described(low, rate, short, base, task) | dict(
      peft_type=peft.MIXLORA, num_experts=section.router.num_experts, top_k=section.router.k,
      router_aux_loss_coef=float(cfg.losses.get('balance', (0.0,))[0]),
      act_fn=section.activation)


def _forms(cfg, record, form):
  """The forms of names (as read, to be written), keys of `peft.FORMS`: one for what was not read in another.

  record: of an import, or {}; form: asked for, or None.
  """
  if _section(cfg) is None:
    if form is not None:
      raise errors.UserError(f'form {form!r} is of the names of a MixLoRA, and the adapter is none; nearest: '
                             'without a form')
    return peft.CURRENT, peft.CURRENT
  before = peft.form_of({}, record['dtypes']) if record else form or peft.CURRENT
  return before, form or before


def _strategy(cfg, form):
  """The field of an adapter_config.json that goes with a form of names: none but for a MixLoRA."""
  return {} if _section(cfg) is None else dict(routing_strategy=peft.FORMS[form].strategy)


def _section(cfg):
  """The section of a configuration's blocks with MixLoRA; None without."""
  return next((block for block in cfg.blocks.values() if block.layer == 'mixlora'), None)


def _module(part):
  """What the matrix beside a Part is called."""
  return part.tensor.removesuffix(f'.{peft.ENDS[part.path[-1]]}').removeprefix('base_model.model.')


def _low(cfg):
  """The fields that the adapters of a configuration have in common.

  Raises UserError for a MixLoRA of a form that the files do not hold.
  """
  names = ('rank', 'alpha', 'rslora', 'dora', 'gaussian')
  sections = [(block, block.adapter_dropout) for block in cfg.blocks.values() if block.layer == 'mixlora']
  if any(block.router.name != 'mixlora' or block.router.p is not None for block, _ in sections):
    raise errors.UserError('the files hold MixLoRA of k experts alone; the run directory itself holds the '
                           'adapter')
  if cfg.model.get('adapter') is not None:
    sections.append((cfg.model.adapter, cfg.model.adapter.dropout_rate))
  low = [dict({name: section[name] for name in names}, dropout_rate=rate) for section, rate in sections]
  other = next((one for one in low if one != low[0]), None)
  if other is not None:
    raise errors.UserError(f'the adapters of attention and of layers differ, {other} and {low[0]}, and the '
                           'files hold one of both')
  return low[0]
