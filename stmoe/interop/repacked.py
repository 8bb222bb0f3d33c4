"""Packed tensors of imports, packed again in exports: which they are, their scales, what config.json says."""

import pathlib
import re
import typing

from stmoe import errors
from stmoe import files as documents
from stmoe import lookup
from stmoe.interop import tensors as files
from stmoe.interop.packings import mxfp4

FIELD = 'quantization_config'            # of config.json: how tensors are packed
KIND = mxfp4.KIND                        # of the tensors that an export packs
BLOCK = 1 << 25                          # bytes that are copied at once
REMEMBERED = 'scales'                    # the folder of a run with the scales that its tensors came with


def known(packing: dict) -> bool:
  """Returns whether exports pack again what an import with the quantization_config `packing` unpacked."""
  return lookup.module('packing', packing['quant_method']).KIND == KIND


def remember(run: pathlib.Path, found: dict) -> None:
  """Keeps the scales of the packed tensors `found` in run directory `run`; several scales give one number."""
  scales = {f'{name}{mxfp4.SCALES}': tensor.scales for name, tensor in found.items() if tensor.dtype == KIND}
  if not scales:
    return
  (run / REMEMBERED).mkdir()
  kept = files.create(run / REMEMBERED, {name: ('U8', t.shape) for name, t in scales.items()}, 5 * 10**9)
  for name, tensor in scales.items():
    for first, last in tensor.blocks(BLOCK):
      kept[name].write(first, tensor.read(first, last))


def kinds(family: typing.Any, record: dict, dtype: str | None) -> typing.Callable[[str], str]:
  """Returns the function name of a tensor -> its dtype in an export.

  Args:
    family: the module; its PACKED is a regular expression of the names of packed tensors.
    record: of imported.json, {} without one.
    dtype:  of all tensors; None = as imported, else F32; MXFP4 = of packed tensors, and BF16 of the others.
  Raises:
    UserError: MXFP4 of a family without packed tensors.
  """
  if dtype != KIND:
    return lambda name: dtype or record.get('dtypes', {}).get(name) or record.get('dtype', 'F32')
  packed = getattr(family, 'PACKED', None)
  if packed is None:
    raise errors.UserError(f'--dtype {KIND}: {family.ARCHITECTURE} has no such tensors; nearest: BF16')
  return lambda name: KIND if re.fullmatch(packed, name) else 'BF16'


def described(run: pathlib.Path, hf: dict | None, family: typing.Any, layout: dict) -> dict | None:
  """Returns the config.json of an export, with quantization_config where tensors are packed.

  Args:
    run:    run directory; hf: config.json without that field. None of either: as imported.
    family: the module; its PACKING is the field, where the import did not have it.
    layout: dict name of a tensor -> (dtype, shape).
  """
  packed = any(kind == KIND for kind, _ in layout.values())
  file = run / 'source' / 'config.json'
  original = documents.read_json(file) if file.is_file() else {}
  if hf is None and packed == bool(original.get(FIELD)):
    return None
  new_fields = {key: value for key, value in (hf or original).items() if key != FIELD}
  return new_fields | ({FIELD: original.get(FIELD) or family.PACKING} if packed else {})


def create(folder: pathlib.Path, layout: dict, most: int, run: pathlib.Path) -> dict:
  """Returns dict name -> tensor of new files in `folder` (`tensors.create`); packed ones know their scales.

  Args:
    run: run directory.
  """
  made = files.create(folder, mxfp4.layout(layout), most)
  remembered = files.tensors(run / REMEMBERED) if (run / REMEMBERED).is_dir() else None
  return mxfp4.joined(made, remembered)
