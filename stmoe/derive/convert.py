"""Conversion of checkpoints: a folder of Hugging Face files to a run directory, and back.

Tensors go through memory one after the other, larger tensors in blocks of rows; nothing stays but what is on
disk. Both ways write beside the goal and rename at the end. imported.json and the folder `source` of a run
directory remember what our form does not hold. That is the original config.json, tokenizer files, dtypes, and
tensors that were there twice. An export of the same parameters then has the same names and the same bytes.
"""

import itertools
import math
import pathlib
import shutil

import jax
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import files as documents
from stmoe import lookup
from stmoe import modules
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.text import tokenizer
from stmoe.derive import start as starts
from stmoe.derive import streamed
from stmoe.derive import vocabularies
from stmoe.interop import fields
from stmoe.interop import rules
from stmoe.interop import t5x
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.runs import whole as beside
from stmoe.train import check
from stmoe.train import state as states

BLOCK = 1 << 25                          # bytes of a tensor that are in memory at once
PARTS = ('params', 'router_state')
BESIDE = ('config.json', tokenizer.FILE, *tokenizer.OTHERS, 'added_tokens.json', 'vocab.json', 'merges.txt',
          *tokenizer.PIECES)


def read(source, target, overrides=(), say=print, bos=None):
  """Writes the run directory `target` from a Hugging Face or T5X folder; returns imported.json's dict.

  Args:
    overrides: texts '--config.a.b=value' on the configuration made from config.json.
    say:       called with a line about tensors that are not read, and the like.
    bos:       whether texts and prompts begin with the tokenizer's first token; None = as its post-processor
      says.
  Raises:
    UserError: another architecture, missing, unknown or misshapen tensors, broken files, a vocabulary
      larger than the model's; nothing is written then.
  """
  source = pathlib.Path(source)
  name, family, sections, tensors = _open(source)
  cfg = _configuration(sections, overrides)
  vocabulary = vocabularies.of(source, cfg, say)
  if starts_of := vocabularies.starts(vocabulary, sections['model'], bos, say):
    sections['model'] |= starts_of
    cfg = _configuration(sections, overrides)
  with beside.new(target) as path:
    digest = vocabularies.keep(vocabulary, path, pathlib.Path(target), cfg)
    copies = _copies(family, cfg, tensors)
    with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
      plan = states.blueprint(cfg, mesh)
    placed = rules.places({part: plan.shapes[part] for part in PARTS}, family.table(cfg.to_dict()))
    _check_kinds(placed, tensors)
    skipped = rules.check(placed, {key: t.shape for key, t in tensors.items()}, copies,
                          family.ignored(cfg.to_dict()))
    if skipped:
      say(f'not read, and not in an export: {len(skipped)} tensors ({rules.some(skipped)})')
    kinds = {key: t.dtype for key, t in tensors.items()}
    usual = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    record = dict(source=str(source), family=name, copies=sorted(copies), dtype=usual,
                  dtypes={key: kind for key, kind in kinds.items() if kind != usual and key not in skipped})
    _fill(path, cfg, plan, placed, tensors, digest)
    (path / 'source').mkdir()
    for file in BESIDE:
      if (source / file).is_file():
        shutil.copyfile(files.inside(source, file), path / 'source' / file)
    documents.write_json(path / 'imported.json', record)
    parents = [starts.imported(source, _sha256(source / 'config.json'))]
    facts = dict(skipped=sorted(skipped), dtype=usual)
    starts.claim(path, cfg, starts.origin('convert', dict(family=name), parents, facts), line={}, say=say)
  return record | dict(parameters=sum(x.size for x in jax.tree.leaves(plan.shapes['params'])))


def _open(source):
  """(name of the family, its module, sections of a configuration, dict of tensors) of a folder."""
  if t5x.found(source):
    tensors = t5x.tensors(source)
    return 't5x', t5x, t5x.configure({name: array.shape for name, array in tensors.items()}), tensors
  hf = documents.read_json(files.inside(source, 'config.json'))
  name, family = fields.family(hf)
  tensors = files.tensors(source)
  sections = family.configure(hf, _tied(family, hf, tensors))
  generation_file = files.inside(source, 'generation_config.json')
  generation = documents.read_json(generation_file) if generation_file.is_file() else {}
  sections['model'] |= fields.ids(hf, generation, sections['model'])
  return name, family, sections, tensors


def _sha256(file):
  """The digest of a file, None without a file."""
  return store.sha256(file) if file.is_file() else None


def _tied(family, hf, found):
  """Whether the model's head is its embedding: what the tensors say, where config.json is ambiguous."""
  head, table = 'lm_head.weight', family.COPIES['lm_head.weight']
  if head not in found or table not in found:
    return head not in found
  # Two equal tables of an untied model are stored once as well: they read as tied tables do and train apart.
  return hf.get('tie_word_embeddings', True) is not False and files.equal(found[head], found[table])


def _configuration(sections, overrides):
  """The configuration of an imported run: the model, and how training would usually go on with it."""
  _, common = experiment.find_module('common')
  c = common.config()
  model = sections['model']
  if model['name'] == 't5':
    c.data = common.seq2seq('text', 512, 114, extra_ids=0)
  else:
    c.data = common.data('text', 512)
  c.data.vocab = ''                        # until `vocabularies.keep`
  c.model, c.blocks = model, sections['blocks']
  c.losses.update(sections['losses'])
  c.optimizer = dict(name='adafactor', decay_rate=0.8, clipping_threshold=1.0)
  c.schedule = dict(name='constant', value=1e-3)
  experiment.override(c, overrides)
  check.counts(c)
  return c.lock()


def _copies(family, cfg, found):
  """Names of tensors that repeat other tensors; raises UserError if they do not."""
  tied, names = cfg.model.tie_embeddings, []
  for name, origin in family.COPIES.items():
    if name not in found or name == 'lm_head.weight' and not tied:
      continue
    if origin in found and not files.equal(found[name], found[origin]):
      raise errors.UserError(f'{name} is not {origin}, and the model has one table for both')
    names.append(name)
  return names


def _check_kinds(placed, found):
  """Raises UserError for a parameter stored as integers: no parameter, or not of its dtype."""
  wrong = [place.tensor for place in placed
           if place.tensor in found and found[place.tensor].dtype not in files.FLOATS]
  if wrong:
    tensor = found[wrong[0]]
    raise errors.UserError(f'{tensor.file}: {wrong[0]} is of dtype {tensor.dtype}, and a parameter is one of '
                           f'{", ".join(files.FLOATS)} ({len(wrong)} tensors)')


def _fill(path, cfg, plan, placed, found, digest):
  """Writes the checkpoint of step 0, slice by slice."""
  start = jax.jit(lambda: {k: v for k, v in states.fresh(cfg, plan).items() if k != 'params'})()
  folder = path / 'checkpoints'
  folder.mkdir()
  writer = streamed.Writer(folder, 0, dict(params=plan.shapes['params']), start, dict(step=0, data=None))
  total = sum(found[place.tensor].size for place in placed if place.tensor)
  with progress.task('reading tensors', total, 'bytes') as advance:
    for leaf, group in itertools.groupby(placed, lambda place: place.leaf):
      group = list(group)
      if group[0].tensor is not None:
        _fill_array(writer, leaf, group, found, advance)
  writer.finish(starts.meta(cfg, digest))


def _fill_array(writer, leaf, group, found, advance):
  """Writes one array from the tensors of its Places: at once, or in blocks where the array is large."""
  shape = writer.shape(leaf)
  if 4 * math.prod(shape) <= 2 * BLOCK:
    whole = np.empty(shape, np.float32)
    for place in group:
      whole[place.index] = _turn(found[place.tensor].read(), place)
      advance(found[place.tensor].size)
    writer.write(writer.array(leaf, shape), leaf, ..., whole)
    return
  step = _rows(group[0])
  store = writer.array(leaf, (*(1,) * len(group[0].index), *_turned(step, group[0])))
  for place in group:
    tensor = found[place.tensor]
    for first in range(0, tensor.shape[0], step):
      last = min(first + step, tensor.shape[0])
      writer.write(store, leaf, _where(place, first, last), _turn(tensor.read(first, last), place))
      advance(tensor.size * (last - first) // tensor.shape[0])


def _rows(place):
  """How many rows of a tensor make a block."""
  return min(place.there[0], max(1, BLOCK // (4 * math.prod(place.there[1:]))))


def _turned(rows, place):
  """The shape, in our array, of a block of `rows` rows of the tensor."""
  return (place.shape[0], rows) if place.op == rules.LINEAR else (rows, *place.shape[1:])


def _where(place, first, last):
  """The slices of our array that hold rows `first` to `last` of the tensor."""
  rows = slice(first, last)
  return (*place.index, slice(None), rows) if place.op == rules.LINEAR else (*place.index, rows)


def _turn(x, place):
  """f32 `x` between the form of the tensor and ours; either way."""
  x = x.astype(np.float32, copy=False)
  return x.T if place.op == rules.LINEAR else x


def write(source, target, overrides=(), to=None, dtype=None, step=None, most=5 * 10**9):
  """Writes the Hugging Face folder `target` from run directory `source`; returns (step, family, its Tensors).

  Args:
    overrides: on the run's configuration, where the run is to be read in another way.
    to:        family; None = the family that the run was imported from.
    dtype:     of all tensors, as safetensors call it; None = as imported, else F32.
    step:      of the checkpoint; None = the newest.
    most:      bytes of a file.
  Raises:
    UserError: the model is none of this family, or the checkpoint is not what was saved.
  """
  source = pathlib.Path(source)
  cfg = experiment.override(rundir.opened(source, step), overrides, whole=False)
  record = _imported(source)
  name = to or record.get('family', 't5x')
  if name == 't5x':
    raise errors.UserError(f'{source} was not imported from Hugging Face; say what it is to be with --to '
                           f'(there are: {", ".join(lookup.available("family"))})')
  family = lookup.module('family', name)
  record = record if record.get('family') == name else {}
  hf = _describe(source / 'source' / 'config.json', family, cfg.to_dict(), bool(record))
  reader = _reader(source, step)
  placed = _placed(reader, family, cfg)
  kind = lambda tensor: dtype or record.get('dtypes', {}).get(tensor) or record.get('dtype', 'F32')
  layout = {place.tensor: (kind(place.tensor), place.there) for place in placed if place.tensor}
  copies = _origins(source, family, record, cfg)
  with beside.new(target) as path:
    for file in (source / 'source').glob('*'):
      shutil.copyfile(file, path / file.name)
    if hf is not None:
      documents.write_json(path / 'config.json', hf, sort_keys=True)
    created = files.create(path, layout | {c: (kind(c), layout[o][1]) for c, o in copies.items()}, most)
    with progress.task('writing tensors', sum(created[t].size for t in layout), 'bytes') as advance:
      _write_arrays(reader, placed, created, advance)
    for copy, origin in copies.items():
      for first, last in created[origin].blocks(BLOCK):
        files.write(created[copy], first, created[origin].read(first, last))
  return reader.step, name, created


def _reader(source, step):
  """The Reader of the checkpoint of `step`, None = the newest, of run directory `source`."""
  steps = stored.steps(source / 'checkpoints')
  if not steps or step is not None and step not in steps:
    raise errors.UserError(f'{source} has no checkpoint{"" if step is None else f" of step {step}"} yet '
                           f'(there are: {", ".join(map(str, steps)) or "none"})')
  return stored.Reader(source / 'checkpoints', steps[-1] if step is None else step)


def _placed(reader, family, cfg):
  """The Places of the arrays of a checkpoint in the tensors of a family."""
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
  checkpoint.check_shapes(reader.inventory, plan.shapes)
  own = {part: modules.without_reader(plan.shapes[part]) for part in PARTS}
  return rules.places(own, family.table(cfg.to_dict()))


def _origins(source, family, record, cfg):
  """Dict name of a tensor that is written twice -> name of the tensor that it repeats."""
  copied = record['copies'] if record else family.copied(cfg.to_dict())
  if not set(copied) <= set(family.COPIES):
    raise errors.Damaged(source / 'imported.json', f'has copies that are none: {copied!r:.80}')
  return {copy: family.COPIES[copy] for copy in copied}


def _imported(source):
  """The dict in imported.json of a run directory, {} of a run trained here; its dtypes are such."""
  record = records.imported(source)
  kinds = [record['dtype'], *record['dtypes'].values()] if record else []
  unknown = next((kind for kind in kinds if kind not in files.DTYPES), None)
  if unknown is not None:
    raise errors.Damaged(source / 'imported.json', f'has the dtype {unknown!r:.80}')
  return record


def _describe(original, family, c, imported):
  """The config.json of a model, or None where the imported config.json still says it.

  Raises UserError if the family has no such model.
  """
  tied = c['model'].get('tie_embeddings', True)
  original_fields = documents.read_json(original) if imported else {}
  if imported and not fields.differences(c, family.configure(original_fields, tied)):
    return None
  new_fields = (original_fields or _ids(c['model'])) | family.describe(c)
  unlike = fields.differences(c, family.configure(new_fields, tied))
  if unlike:
    raise errors.UserError(f'the model is not of the family {new_fields["model_type"]}, whose '
                           f'{rules.some(unlike)}')
  return new_fields


def _ids(model):
  """The special ids of section `model`, as config.json has them."""
  ends = list(model.get('end_ids') or (1,))
  return dict(pad_token_id=0, bos_token_id=model.get('start_id', 0),
              eos_token_id=ends if ends[1:] else ends[0])


def _write_arrays(reader, placed, made, advance):
  """Writes the tensors of all arrays, of the Places `placed` in their order."""
  for leaf, group in itertools.groupby(placed, lambda place: place.leaf):
    group = list(group)
    if group[0].tensor is not None:
      _write_array(reader, leaf, group, made, advance)


def _write_array(reader, leaf, group, made, advance):
  """Writes the tensors of an array: in blocks, or at once where it is small or a chunk has many tensors."""
  store, total = reader.array(leaf), 0
  lead = len(group[0].index)
  stacked = any(n > 1 for n in store.chunk_layout.read_chunk.shape[:lead])
  if stacked or 4 * math.prod(store.shape) <= 2 * BLOCK:
    whole = stored.read(store, ...)
    total = reader.share(whole, store.shape, ...)
    for place in group:
      files.write(made[place.tensor], 0, _turn(whole[place.index], place))
      advance(made[place.tensor].size)
  else:
    for place in group:
      tensor, step = made[place.tensor], _rows(place)
      for first in range(0, tensor.shape[0], step):
        last = min(first + step, tensor.shape[0])
        block = stored.read(store, _where(place, first, last))
        total += reader.share(block, store.shape, _where(place, first, last))
        files.write(tensor, first, _turn(block, place))
        advance(tensor.size * (last - first) // tensor.shape[0])
  if total % 2**32 != reader.inventory['/'.join(map(str, leaf))][1]:
    raise errors.UserError(f'checkpoint {reader.step}: {"/".join(map(str, leaf))} is not what was saved')
