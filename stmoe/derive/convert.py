"""Conversion of checkpoints: a folder of Hugging Face files to a run directory, and back.

Tensors go through memory a few at a time, larger tensors in blocks of rows; nothing stays but what is on
disk. Parameters are bfloat16 where all tensors are, float32 else. Both ways write beside the goal and rename
at the end. imported.json and the folder `source` of a run directory remember what our form does not hold.
That is the original config.json, tokenizer files, dtypes, and tensors that were there twice. An export of the
same parameters then has the same names and the same bytes.
"""

import itertools
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import files as documents
from stmoe import lookup
from stmoe import modules
from stmoe import ranges
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.text import tokenizer
from stmoe.derive import exported
from stmoe.derive import pieces
from stmoe.derive import start as starts
from stmoe.derive import streamed
from stmoe.derive import vocabularies
from stmoe.interop import fields
from stmoe.interop import repacked
from stmoe.interop import rules
from stmoe.interop import t5x
from stmoe.interop import tensors as files
from stmoe.interop import unread
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.runs import whole as beside
from stmoe.surgery import layout
from stmoe.train import check
from stmoe.train import state as states

PARAMETERS = {'F32': 'float32', 'BF16': 'bfloat16'}                  # what those of a run may be
POSITIONS = ('rope_theta', 'rope_parameters', 'max_position_embeddings')   # of config.json
PARTS = ('params', 'router_state')
BESIDE = ('config.json', tokenizer.FILE, *tokenizer.OTHERS, 'added_tokens.json', 'vocab.json', 'vocab.txt',
          'merges.txt', 'sentencepiece.bpe.model', *tokenizer.PIECES)


def read(source, target, overrides=(), say=print, bos=None, dtype=None):
  """Writes the run directory `target` from a Hugging Face or T5X folder; returns imported.json's dict.

  Args:
    overrides: texts '--config.a.b=value' on the configuration made from config.json.
    say:       called with a line about tensors that are not read, and the like.
    bos:       whether texts and prompts begin with the tokenizer's first token; None = as its post-processor
      says.
    dtype:     of parameters, a key of PARAMETERS; None = BF16 where all tensors are that, F32 else.
  Raises:
    UserError: another architecture, missing, unknown or misshapen tensors, broken files, a vocabulary
      larger than the model's; nothing is written then.
  """
  source = pathlib.Path(source)
  if dtype not in (None, *PARAMETERS):
    raise errors.UserError(f'--dtype {dtype}: parameters of a run are of {" or ".join(PARAMETERS)}; nearest: '
                           'BF16')
  name, family, sections, tensors, packing = opened(source, say)
  cfg = configuration(sections, overrides)
  vocabulary = vocabularies.of(source, cfg, say)
  if starts_of := vocabularies.starts(vocabulary, sections['model'], bos, say):
    sections['model'] |= starts_of
    cfg = configuration(sections, overrides)
  with beside.new(target) as path:
    digest = vocabularies.keep(vocabulary, path, pathlib.Path(target), cfg)
    copies = _copies(family, cfg, tensors)
    with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
      plan, placed = planned(cfg, mesh, family, tensors, dtype)
    skipped = unplaced(cfg, family, placed, tensors)
    if skipped:
      say(f'not read, and not in an export: {len(skipped)} tensors ({rules.some(skipped)})')
    rounded = _rounded(plan, placed, tensors)
    if rounded:
      say(f'rounded to bfloat16: {len(rounded)} tensors ({rules.some(rounded)})')
    kinds = {key: t.dtype for key, t in tensors.items()} | dict.fromkeys(rounded, 'BF16')
    usual = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    record = dict(source=str(source), family=name, copies=sorted(copies), dtype=usual,
                  dtypes={key: kind for key, kind in kinds.items() if kind != usual and key not in skipped})
    _fill(path, cfg, plan, placed, tensors, digest)
    (path / 'source').mkdir()
    for file in BESIDE:
      if (source / file).is_file():
        shutil.copyfile(files.inside(source, file), path / 'source' / file)
    if packing and not repacked.known(packing):                      # an export has the tensors unpacked
      hf = documents.read_json(path / 'source' / 'config.json')
      documents.write_json(path / 'source' / 'config.json',
                           {key: value for key, value in hf.items() if key != repacked.FIELD}, sort_keys=True)
      record |= dict(packing=packing)
    repacked.remember(path, tensors)
    documents.write_json(path / 'imported.json', record)
    parents = [starts.imported(source, _sha256(source / 'config.json'))]
    facts = dict(skipped=sorted(skipped), dtype=usual)
    starts.claim(path, cfg, starts.origin('convert', dict(family=name), parents, facts), line={}, say=say)
  arrays = jax.tree.leaves(plan.shapes['params'])
  number, size = sum(x.size for x in arrays), sum(x.size * x.dtype.itemsize for x in arrays)
  return record | dict(parameters=number, bytes=size)


def opened(source, say=print):
  """Returns what a folder holds, by its headers alone.

  (name of the family, its module, sections of a configuration, dict of tensors, quantization_config or None).
  """
  if t5x.found(source):
    tensors = t5x.tensors(source)
    return 't5x', t5x, t5x.configure({name: array.shape for name, array in tensors.items()}), tensors, None
  hf = documents.read_json(files.inside(source, 'config.json'))
  name, family = fields.family(hf)
  packing = fields.given(hf, repacked.FIELD, ranges.Section)
  tensors = _unpacked(files.tensors(source), packing)
  hf = {key: value for key, value in hf.items() if key != repacked.FIELD}
  sections = unread.configured(name, family, hf, _tied(family, hf, tensors), say)
  generation_file = files.inside(source, 'generation_config.json')
  generation = documents.read_json(generation_file) if generation_file.is_file() else {}
  sections['model'] |= fields.ids(hf, generation, sections['model'])
  return name, family, sections, tensors, packing


def _unpacked(tensors, packing):
  """The model's own tensors, for those of a file and its quantization_config, if any."""
  if packing is None:
    return tensors
  method = packing.get('quant_method')
  there = lookup.available('packing')
  if method not in there:
    raise errors.UserError(f'config.json: {repacked.FIELD}.quant_method={method!r:.60} is not supported'
                           f'{errors.nearest(method, there)} (there are: {", ".join(there)})')
  return lookup.module('packing', method).unpacked(tensors, packing)


def planned(cfg, mesh, family, found, dtype=None):
  """Returns (Blueprint of `cfg`, its Places in the tensors `found`); see `read` for dtype.

  `cfg` gets the dtype of its parameters, where it is not float32.
  """
  kinds = [tensor.dtype for tensor in found.values()]
  free = dtype is None and 'param_dtype' not in cfg.model
  if dtype is not None or free and 2 * kinds.count('BF16') > len(kinds):
    with cfg.unlocked():
      cfg.model.param_dtype = PARAMETERS[dtype or 'BF16']
  plan = states.blueprint(cfg, mesh)
  placed = rules.places({part: plan.shapes[part] for part in PARTS}, family.table(cfg.to_dict()))
  if free and _rounded(plan, placed, found):
    with cfg.unlocked():
      del cfg.model.param_dtype
    return planned(cfg, mesh, family, found, 'F32')
  return plan, placed


def unplaced(cfg, family, placed, found):
  """Returns the names of tensors that are not read; raises UserError unless every tensor has its place."""
  _check_kinds(placed, found)
  return rules.check(placed, {name: tensor.shape for name, tensor in found.items()},
                     _copies(family, cfg, found), family.ignored(cfg.to_dict()))


def _rounded(plan, placed, found):
  """The names of the tensors `found` whose numbers bfloat16 parameters do not hold."""
  narrow = {place.tensor for place in placed if layout.at(plan.shapes, place.leaf).dtype == jnp.bfloat16}
  return sorted(name for name in narrow & {*found} if found[name].dtype not in ('BF16', repacked.KIND))


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


def configuration(sections, overrides=()):
  """Returns the configuration of an imported run: the model, and how training would usually go on with it."""
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
           if place.tensor in found and found[place.tensor].dtype not in (*files.FLOATS, repacked.KIND)]
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
  total = sum(pieces.of(found, place).size for place in placed if place.tensor)
  with progress.task('reading tensors', total, 'bytes') as advance:
    works = (work for leaf, group in itertools.groupby(placed, lambda place: place.leaf)
             for work in _filling(writer, leaf, list(group), found))
    for read_bytes in pieces.at_once(works):
      advance(read_bytes)
  writer.finish(starts.meta(cfg, digest))


def _filling(writer, leaf, group, found):
  """Yields functions that write parts of an array from its Places and return how many bytes they read.

  A small array is a single part, a large one has blocks of the rows of its tensors.
  """
  like = writer.like(leaf)
  if group[0].tensor is None:
    return
  if pieces.small(like.shape, like.dtype):
    yield lambda: _fill_whole(writer, leaf, group, found)
    return
  store = writer.array(leaf, (*(1,) * len(group[0].index), *pieces.shape(group[0], like.dtype)))
  for place in group:
    for first, last in pieces.spans(place, like.dtype):
      yield lambda place=place, first=first, last=last: _fill_rows(writer, store, place, found, first, last)


def _fill_whole(writer, leaf, group, found):
  like, size = writer.like(leaf), 0
  whole = np.empty(like.shape, like.dtype)
  for place in group:
    tensor = pieces.of(found, place)
    whole[place.index] = pieces.turned(tensor.read(), place, like.dtype)
    size += tensor.size
  writer.write(writer.array(leaf, like.shape), leaf, ..., whole)
  return size


def _fill_rows(writer, store, place, found, first, last):
  tensor = pieces.of(found, place)
  value = pieces.turned(tensor.read(first, last), place, writer.like(place.leaf).dtype)
  writer.write(store, place.leaf, pieces.where(place, first, last), value)
  return tensor.size * (last - first) // tensor.shape[0]


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
  reader = reader_of(source, step)
  placed = _placed(reader, family, cfg)
  kind = repacked.kinds(family, record, dtype)
  layout = {place.tensor: (kind(place.tensor), place.whole) for place in placed if place.tensor}
  copies = _origins(source, family, record, cfg)
  layout |= {copy: (kind(copy), layout[origin][1]) for copy, origin in copies.items()}
  hf = repacked.described(source, hf, family, layout)
  with beside.new(target) as path:
    exported.write(path, source, cfg, name, family, hf, reader.step)
    created = repacked.create(path, layout, most, source)
    size = sum(tensor.size for name, tensor in created.items() if name not in copies)
    with progress.task('writing tensors', size, 'bytes') as advance:
      _write_arrays(reader, placed, created, advance)
    for copy, origin in copies.items():
      for first, last in created[origin].blocks(pieces.BLOCK):
        created[copy].write(first, created[origin].read(first, last))
  return reader.step, name, created


def reader_of(source, step):
  """Returns the Reader of the checkpoint of `step`, None = the newest, of run directory `source`."""
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
  unknown = next((kind for kind in kinds if kind not in (*files.DTYPES, repacked.KIND)), None)
  if unknown is not None:
    raise errors.Damaged(source / 'imported.json', f'has the dtype {unknown!r:.80}')
  return record


def _describe(original, family, c, imported):
  """The config.json of a model, or None where the imported config.json still says it.

  Raises UserError if the family has no such model.
  """
  tied = c['model'].get('tie_embeddings', True)
  original_fields = documents.read_json(original) if imported else {}
  original_fields.pop(repacked.FIELD, None)                          # see `repacked.described`
  if not imported:
    new_fields = exported.ids(c['model']) | family.describe(c)
  else:
    changed = fields.differences(c, family.configure(original_fields, tied))
    if not changed:
      return None
    moved = any(text.startswith('rotary_') for text in changed)
    new_fields = original_fields | (family.describe(c) if moved else _but_positions(family, c))
  unlike = fields.differences(c, family.configure(new_fields, tied))
  if unlike:
    raise errors.UserError(f'the model is not of the family {new_fields["model_type"]}, whose '
                           f'{rules.some(unlike)}')
  return new_fields


def _but_positions(family, c):
  """The fields that a family says of configuration `c`, without those of positions."""
  model = {key: value for key, value in c['model'].items() if not key.startswith('rotary_')}
  return {key: value for key, value in family.describe(c | dict(model=model)).items() if key not in POSITIONS}


def _write_arrays(reader, placed, made, advance):
  """Writes the tensors of all arrays, of the Places `placed` in their order; raises UserError for damage."""
  sums = {}
  works = (work for leaf, group in itertools.groupby(placed, lambda place: place.leaf)
           for work in _writing(reader, leaf, list(group), made))
  for leaf, share, written in pieces.at_once(works):
    sums[leaf] = sums.get(leaf, 0) + share
    advance(written)
  for leaf, total in sums.items():
    if total % 2**32 != reader.inventory['/'.join(map(str, leaf))][1]:
      raise errors.UserError(f'checkpoint {reader.step}: {"/".join(map(str, leaf))} is not what was saved')


def _writing(reader, leaf, group, made):
  """Yields functions that write parts of the tensors of an array and return (leaf, share, bytes).

  The part is all of an array that is small or whose chunks have many tensors, and a block of rows else.
  """
  if group[0].tensor is None:
    return
  store, lead = reader.array(leaf), len(group[0].index)
  dtype = store.dtype.numpy_dtype
  stacked = any(n > 1 for n in store.chunk_layout.read_chunk.shape[:lead])
  if stacked or pieces.small(store.shape, dtype):
    yield lambda: _write_whole(reader, store, leaf, group, made)
    return
  for place in group:
    for first, last in pieces.spans(place, dtype):
      yield lambda place=place, first=first, last=last: _write_rows(reader, store, place, made, first, last)


def _write_whole(reader, store, leaf, group, made):
  whole, size = stored.read(store, ...), 0
  for place in group:
    tensor = pieces.of(made, place)
    tensor.write(0, pieces.turned(whole[place.index], place, whole.dtype))
    size += tensor.size
  return leaf, reader.share(whole, store.shape, ...), size


def _write_rows(reader, store, place, made, first, last):
  tensor, where = pieces.of(made, place), pieces.where(place, first, last)
  block = stored.read(store, where)
  tensor.write(first, pieces.turned(block, place, block.dtype))
  size = tensor.size * (last - first) // tensor.shape[0]
  return place.leaf, reader.share(block, store.shape, where), size
