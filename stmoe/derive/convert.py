"""Conversion of checkpoints: a folder of Hugging Face files to a run directory, and back.

Tensors go through memory a few at a time, larger tensors in blocks of rows; nothing stays but what is on
disk. Parameters are bfloat16 where all tensors are, float32 else. Both ways write beside the goal and rename
at the end. imported.json and the folder `source` of a run directory remember what our form does not hold.
That is the original config.json, tokenizer files, dtypes, and tensors that were there twice. An export of the
same parameters then has the same names and the same bytes.
"""

import pathlib
import shutil

import jax

from stmoe import errors
from stmoe import experiment
from stmoe import files as documents
from stmoe import lookup
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.derive import exported
from stmoe.derive import pieces
from stmoe.derive import start as starts
from stmoe.derive import vocabularies
from stmoe.derive.conversion import exporting
from stmoe.derive.conversion import importing
from stmoe.interop import repacked
from stmoe.interop import rules
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.runs import whole as beside
from stmoe.train import state as states


def read(source, target, overrides=(), say=print, bos=None, dtype=None):
  """Writes the run directory `target` from a Hugging Face or T5X folder; returns imported.json's dict.

  Args:
    overrides: texts '--config.a.b=value' on the configuration made from config.json.
    say:       called with a line about tensors that are not read, and the like.
    bos:       whether texts and prompts begin with the tokenizer's first token; None = as its post-processor
      says.
    dtype:     of parameters, a key of importing.PARAMETERS; None = BF16 where all tensors are that, F32 else.
  Raises:
    UserError: another architecture, missing, unknown or misshapen tensors, broken files, a vocabulary
      larger than the model's; nothing is written then.
  """
  source = pathlib.Path(source)
  if dtype not in (None, *importing.PARAMETERS):
    there = ' or '.join(importing.PARAMETERS)
    raise errors.UserError(f'--dtype {dtype}: parameters of a run are of {there}; nearest: BF16')
  name, family, sections, tensors, packing = importing.opened(source, say, once=True)
  cfg = importing.configuration(sections, overrides)
  vocabulary = vocabularies.of(source, cfg, say)
  if starts_of := vocabularies.starts(vocabulary, sections['model'], bos, say):
    sections['model'] |= starts_of
    cfg = importing.configuration(sections, overrides)
  with beside.new(target) as path:
    digest = vocabularies.keep(vocabulary, path, pathlib.Path(target), cfg)
    copies = importing.copies(family, cfg, tensors)
    with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
      plan, placed = importing.planned(cfg, mesh, family, tensors, dtype)
    skipped = importing.unplaced(cfg, family, placed, tensors)
    if skipped:
      say(f'not read, and not in an export: {len(skipped)} tensors ({rules.some(skipped)})')
    rounded = importing.rounded(plan, placed, tensors)
    if rounded:
      say(f'rounded to bfloat16: {len(rounded)} tensors ({rules.some(rounded)})')
    record = dict(source=str(source), family=name, copies=sorted(copies),
                  **_kinds(tensors, rounded, skipped))
    importing.fill(path, cfg, plan, placed, tensors, digest)
    record |= _keep_source(path, source, tensors, packing)
    documents.write_json(path / 'imported.json', record)
    parents = [starts.imported(source, _sha256(source / 'config.json'))]
    facts = dict(skipped=sorted(skipped), dtype=record['dtype'])
    starts.claim(path, cfg, starts.origin('convert', dict(family=name), parents, facts), line={}, say=say)
  arrays = jax.tree.leaves(plan.shapes['params'])
  number, size = sum(x.size for x in arrays), sum(x.size * x.dtype.itemsize for x in arrays)
  return record | dict(parameters=number, bytes=size)


def _kinds(tensors, rounded, skipped):
  """The dtype that most tensors have, `dtype`, and of others, `dtypes`, as an export has them."""
  kinds = {key: tensor.dtype for key, tensor in tensors.items()} | dict.fromkeys(rounded, 'BF16')
  usual = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
  return dict(dtype=usual, dtypes={key: kind for key, kind in kinds.items()
                                   if kind != usual and key not in skipped})


def _keep_source(path, source, tensors, packing):
  """Copies what an export gives back into run directory `path`; returns what imported.json says of it."""
  (path / 'source').mkdir()
  for file in importing.BESIDE:
    if (source / file).is_file():
      shutil.copyfile(files.inside(source, file), path / 'source' / file)
  repacked.remember(path, tensors)
  if not packing or repacked.known(packing):
    return {}
  hf = documents.read_json(path / 'source' / 'config.json')          # an export has the tensors unpacked
  documents.write_json(path / 'source' / 'config.json',
                       {key: value for key, value in hf.items() if key != repacked.FIELD}, sort_keys=True)
  return dict(packing=packing)


def _sha256(file):
  """The digest of a file, None without a file."""
  return store.sha256(file) if file.is_file() else None


def write(source, target, overrides=(), to=None, dtype=None, step=None, most=5 * 10**9):
  """Writes the Hugging Face folder `target` from run directory `source`; returns (step, family, its Tensors).

  Args:
    overrides: on the run's configuration, where the run is to be read in another way.
    to:        family; None = the one that the run, or what it was fine-tuned from, was imported from.
    dtype:     of all tensors, as safetensors call it; None = as imported, else F32.
    step:      of the checkpoint; None = the newest.
    most:      bytes of a file.
  Raises:
    UserError: the model is none of this family, or the checkpoint is not what was saved.
  """
  source = pathlib.Path(source)
  cfg = experiment.override(rundir.opened(source, step), overrides, whole=False)
  record = exporting.imported(source)
  name = to or records.family(source) or 't5x'
  if name == 't5x':
    raise errors.UserError(f'{source} was not imported from Hugging Face; say what it is to be with --to '
                           f'(there are: {", ".join(lookup.available("family"))})')
  family = lookup.module('family', name)
  record = record if record.get('family') == name else {}
  original = exporting.original(source, name, record)
  exporting.check_whole(source, name, cfg)
  hf = exporting.described(original, family, cfg.to_dict())
  reader = exporting.reader_of(source, step)
  placed = exporting.placed(reader, family, cfg)
  kind = repacked.kinds(family, record, dtype)
  layout = {place.tensor: (kind(place.tensor), place.whole) for place in placed if place.tensor}
  copies = exporting.origins(source, family, record, cfg)
  layout |= {copy: (kind(copy), layout[origin][1]) for copy, origin in copies.items()}
  hf = exporting.typed(repacked.described(source, hf, family, layout), original, record, layout)
  with beside.new(target) as path:
    exported.write(path, source, cfg, name, family, hf, reader.step)
    created = repacked.create(path, layout, most, source)
    size = sum(tensor.size for name, tensor in created.items() if name not in copies)
    with progress.task('writing tensors', size, 'bytes') as advance:
      exporting.fill(reader, placed, created, advance)
    for copy, origin in copies.items():
      for first, last in created[origin].blocks(pieces.BLOCK):
        created[copy].write(first, created[origin].read(first, last))
  return reader.step, name, created
