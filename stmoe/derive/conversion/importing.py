"""What a folder of another library holds, and the first checkpoint of the run that is made of the folder.

Headers first: the family, the configuration and the place of every tensor are known before a tensor is read.
Tensors then go through memory a few at a time, larger ones in blocks of rows.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import files as documents
from stmoe import lookup
from stmoe import ranges
from stmoe.data import bar as progress
from stmoe.data.text import tokenizer
from stmoe.derive import pieces
from stmoe.derive import start as starts
from stmoe.derive import streamed
from stmoe.interop import fields
from stmoe.interop import repacked
from stmoe.interop import rules
from stmoe.interop import t5x
from stmoe.interop import tensors as files
from stmoe.interop import unread
from stmoe.surgery import layout
from stmoe.train import check
from stmoe.train import state as states

PARAMETERS = {'F32': 'float32', 'BF16': 'bfloat16'}                  # what those of a run may be
PARTS = ('params', 'router_state')
# The files beside the tensors that a run keeps, and an export gives back.
BESIDE = ('config.json', tokenizer.FILE, *tokenizer.OTHERS, 'added_tokens.json', 'vocab.json', 'vocab.txt',
          'merges.txt', 'sentencepiece.bpe.model', *tokenizer.PIECES)


def opened(source, say=print, once=False):
  """Returns what a folder holds, by its headers alone.

  (name of the family, its module, sections of a configuration, dict of tensors, quantization_config or None).

  once: whether each tensor will be read once, see `tensors.Tensor`.
  """
  if t5x.found(source):
    tensors = t5x.tensors(source)
    return 't5x', t5x, t5x.configure({name: array.shape for name, array in tensors.items()}), tensors, None
  hf = documents.read_json(files.inside(source, 'config.json'))
  name, family = fields.family(hf)
  packing = fields.given(hf, repacked.FIELD, ranges.Section)
  tensors = _unpacked(files.tensors(source, once), packing)
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
  if free and rounded(plan, placed, found):
    with cfg.unlocked():
      del cfg.model.param_dtype
    return planned(cfg, mesh, family, found, 'F32')
  return plan, placed


def unplaced(cfg, family, placed, found):
  """Returns the names of tensors that are not read; raises UserError unless every tensor has its place."""
  _check_kinds(placed, found)
  return rules.check(placed, {name: tensor.shape for name, tensor in found.items()},
                     copies(family, cfg, found), family.ignored(cfg.to_dict()))


def rounded(plan, placed, found):
  """The names of the tensors `found` whose numbers bfloat16 parameters do not hold."""
  narrow = {place.tensor for place in placed if layout.at(plan.shapes, place.leaf).dtype == jnp.bfloat16}
  return sorted(name for name in narrow & {*found} if found[name].dtype not in ('BF16', repacked.KIND))


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
  if lookup.encodes_inputs(model['name']):
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


def copies(family, cfg, found):
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


def fill(path, cfg, plan, placed, found, digest):
  """Writes the checkpoint of step 0, slice by slice."""
  start = jax.jit(lambda: {k: v for k, v in states.fresh(cfg, plan).items() if k != 'params'})()
  copies = streamed.copied(plan.shapes)
  start |= dict(opt_state=streamed.nested(
      (leaf, x) for at, x in jax.tree.leaves_with_path(start['opt_state'])
      if ('opt_state', *(leaf := streamed.keys(at))) not in copies))
  placed = placed + [dataclasses.replace(place, leaf=leaf) for leaf, source in copies.items()
                     for place in placed if place.leaf == source]
  shapes = streamed.nested((leaf, layout.held(plan.shapes, leaf)) for leaf in copies)
  shapes |= dict(params=plan.shapes['params'])
  folder = path / 'checkpoints'
  folder.mkdir()
  writer = streamed.Writer(folder, 0, shapes, start, dict(step=0, data=None))
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
