"""Loads an adapter in PEFT's layout onto a base that is there: a new run of both."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import pathlib
import shutil
from typing import NamedTuple

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import files as documents
from stmoe.derive import compress
from stmoe.derive.conversion import exporting
from stmoe.derive.adapter import places
from stmoe.derive.adapter import saved
from stmoe.interop import peft
from stmoe.interop import rules
from stmoe.interop import tensors
from stmoe.parts.adapters import lora as adapters
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.surgery import lora
from stmoe.surgery import mixlora
from stmoe.surgery import sparse


class Loaded(NamedTuple):
  """An adapter in files, and the base that it fits.

  changes: of the base's configuration, dict 'a.b' -> value.
  family:  whose names the tensors have, None = our paths.
  form:    key of `peft.FORMS`, of a MixLoRA's names; None = no MixLoRA.
  tensors: dict name -> Tensor; header: dict of texts beside them.
  """
  folder: pathlib.Path
  changes: dict
  family: str | None
  form: str | None
  tensors: dict
  header: dict

  def changed(self, cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the configuration of the base's model, of `cfg`, with the adapter beside it."""
    return sparse.changed(cfg, self.changes)

  def arrays(self, cfg: ml_collections.ConfigDict) -> dict[tuple, np.ndarray]:
    """Returns dict path in numbered parameters -> array [...] of the adapter beside the model of `cfg`.

    Raises UserError for tensors that are missing or misshapen.
    """
    return _arrays(places.Places(self.changed(cfg), self.family), self.tensors,
                   self.form or peft.LEGACY)

  def described(self) -> str:
    """Returns a line that tells what was read."""
    if self.form is None:
      return f'{self.folder}: LoRA, {len(self.tensors)} tensors'
    first = min(filter(peft.FORMS[self.form].called, self.tensors))
    return f'{self.folder}: MixLoRA in the {self.form} form ({first}), {len(self.tensors)} tensors'


def found(path: str | pathlib.Path) -> bool:
  """Returns whether `path` is the folder of an adapter."""
  return (pathlib.Path(path) / peft.CONFIG).is_file()


def opened(folder: str | pathlib.Path, base: str | pathlib.Path, to: str | None = None,
           step: int | None = None) -> Loaded:
  """Returns the Loaded adapter in `folder`, to stand beside run `base`; see `read` for what else is given.

  Raises UserError if the adapter is of another base, or beside matrices that the base has not.
  """
  folder, base = pathlib.Path(folder), pathlib.Path(base)
  config, listed = documents.read_json(folder / peft.CONFIG), tensors.tensors(folder)
  header = tensors.metadata(folder / peft.FILE)
  family = to or records.family(base)
  cfg = rundir.opened(base, step)
  own = places.Places(cfg, family)
  _same_base(folder, header, own, base, config, step)
  form = peft.form_of(config, listed) if config.get('peft_type') == peft.MIXLORA else None
  return Loaded(folder, _changes(cfg, config, own, listed, form), family, form, listed, header)


def read(folder: str | pathlib.Path, base: str | pathlib.Path, workdir: str | pathlib.Path,
         overrides: Sequence[str] = (), *, to: str | None = None, step: int | None = None,
         say: Callable = print, devices=None) -> dict:
  """Writes run directory `workdir` with the model of run `base` and the adapter in `folder`; returns facts.

  Args:
    overrides: texts '--config.a.b=value' on the base's configuration.
    to:        family whose names the tensors have; None = that of the base's import, or else our paths.
    step:      checkpoint of the base; None = the newest.
  Raises:
    UserError: the adapter is of another base, or its tensors do not fit; nothing is written then.
  """
  adapter = opened(folder, base, to, step)
  say(adapter.described())

  def operate(params, cfg, calibration):
    return sparse.replaced(params, adapter.arrays(cfg)), adapter.changes

  def keep(path):
    own = path / places.FOLDER
    own.mkdir()
    shutil.copyfile(adapter.folder / peft.CONFIG, own / peft.CONFIG)
    documents.write_json(own / places.RECORD, dict(
        metadata=adapter.header, dtypes={name: tensor.dtype for name, tensor in adapter.tensors.items()}))
  return compress.derived(base, operate, ('adapter', dict(folder=str(adapter.folder.absolute()))), workdir,
                          overrides, step=step, say=say, devices=devices, keep=keep)


def _same_base(folder, header, own, base, config, step):
  """Raises UserError where the adapter in `folder` says that it is of another base than `base`."""
  wanted = header.get(saved.DIGEST)
  there = saved.digest(own.base(exporting.reader_of(base, step).inventory))
  if wanted not in (None, there):
    raise errors.UserError(f'{folder} is an adapter of another base: of digest {wanted[:12]}, and {base} has '
                           f'{there[:12]}; nearest: {config.get("base_model_name_or_path") or "unknown"}')


def _changes(cfg, config, own, found, form):
  """The changes of the base's configuration that an adapter of these tensors is."""
  low, rate = peft.section(config), peft.dropout(config)
  routed = form is not None
  make = functools.partial(peft.mixlora, expert=None) if routed else peft.lora
  beside = {make(site, array).tensor: site for site in own.sites for array in peft.ENDS
            if not routed or 'layers' in site.path}
  inside = {peft.mixlora(site, array, expert, form).tensor: site for site in own.sites for array in peft.ENDS
            for expert in range(peft.routed(config)['num_experts'])
            if site.path[-2:-1] == ('layer',)} if routed else {}
  gates = {peft.router(site, form).tensor for site in inside.values()}
  lost = sorted(set(found) - {*beside, *inside, *gates})
  if lost:
    raise errors.UserError(f'{len(lost)} tensors are beside no matrix of the base ({rules.some(lost)})'
                           f'{errors.nearest(lost[0], {*beside, *inside})}')
  targeted = peft.targeted(config) if routed else None
  if targeted is not None:
    _as_targeted(targeted, beside | inside, found)
  leaf = lambda site: own.slices[site.path].leaf
  leaves = lambda sites: sorted({leaf(sites[name]) for name in found if name in sites}, key=str)
  everything = sorted({leaf(site) for site in own.sites}, key=str)
  targets = _targets(leaves(beside), everything)
  if not routed:
    return lora.adapt(cfg, targets=targets, dropout_rate=rate, **low)
  names = {leaf[-1] for leaf in leaves(inside)}
  return mixlora.adapt(cfg, targets='+'.join(sorted(names)), attention=targets, dropout_rate=rate,
                       balance=float(config.get('router_aux_loss_coef', mixlora.BALANCE)),
                       **peft.routed(config), **low)


def _as_targeted(targeted, sites, found):
  """Raises UserError where a MixLoRA has tensors of other matrices than its target_modules.

  targeted: set of names of matrices; sites: dict name of a tensor -> Site that it would be of.
  """
  there = {peft.short(sites[name]): name for name in sorted(found, reverse=True) if name in sites}
  possible = {peft.short(site) for site in sites.values()}
  other = min(there.keys() ^ (possible & targeted), default=None)
  if other in there:
    raise errors.UserError(f'{peft.CONFIG}: target_modules has no {other}, and {there[other]} is of {other}; '
                           f'nearest: {", ".join(sorted(targeted | {other}))}')
  if other is not None:
    raise errors.UserError(f'{peft.CONFIG}: target_modules has {other}, and no tensor is of {other}; '
                           f'nearest: {", ".join(sorted(targeted - {other}))}')


def _targets(leaves, everything):
  """The targets of `parts/adapters/lora.py` that name the arrays `leaves` among the matrices `everything`."""
  short = '+'.join(sorted({leaf[-1] for leaf in leaves}))
  if leaves and [path for path, _ in adapters.matching(short, everything)] == leaves:
    return short
  return '+'.join('/'.join(map(str, leaf)) for leaf in leaves)


def _arrays(new, found, form):
  """Dict path in numbered parameters -> array of an adapter; raises UserError for what does not fit."""
  parts = new.parts(form)
  missing = [part.tensor for part in parts if part.tensor not in found]
  if missing:
    raise errors.UserError(f'{len(missing)} tensors are missing: {rules.some(missing)}; the layers of a '
                           'model have adapters beside the same matrices')
  arrays: dict[tuple, np.ndarray] = {}
  for part in parts:
    tensor, shape = found[part.tensor], new.slices[part.path].shape
    wanted = shape if part.expert is None else shape[1:]
    wanted = wanted[::-1] if part.turned else wanted
    if tensor.shape != wanted:
      raise errors.UserError(f'{part.tensor} is {list(tensor.shape)}; beside this base and of this rank it '
                             f'would be {list(wanted)}')
    array = np.asarray(tensor.read(), np.float32)
    array = array.T if part.turned else array
    if part.expert is None:
      arrays[part.path] = array
    else:
      arrays.setdefault(part.path, np.zeros(shape, np.float32))[part.expert] = array
  return arrays
