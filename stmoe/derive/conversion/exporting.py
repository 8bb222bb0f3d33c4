"""The tensors of a run in the form of another library, and the config.json that says what they are."""

import dataclasses
import itertools

import jax

from stmoe import axes
from stmoe import errors
from stmoe import files as documents
from stmoe import modules
from stmoe import plugins
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.derive import exported
from stmoe.derive import pieces
from stmoe.derive.conversion import importing
from stmoe.interop import fields
from stmoe.interop import repacked
from stmoe.interop import rules
from stmoe.interop import tensors as files
from stmoe.runs import records
from stmoe.train import state as states

KINDS = dict(F32='float32', BF16='bfloat16', F16='float16')          # dtypes as config.json calls them
# Fields of positions in config.json.
POSITIONS = ('rope_theta', 'rope_parameters', 'rope_scaling', 'max_position_embeddings')


def reader_of(source, step):
  """Returns the Reader of the checkpoint of `step`, None = the newest, of run directory `source`."""
  newest = stored.present(source / 'checkpoints', step)[-1]
  return stored.Reader(source / 'checkpoints', newest if step is None else step)


def placed(reader, family, cfg):
  """The Places of the arrays of a checkpoint, those that evaluation reads, in the tensors of a family."""
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
  checkpoint.check_shapes(reader.inventory, plan.shapes)
  own = {part: modules.without_reader(plan.shapes[part]) for part in importing.PARTS}
  return [dataclasses.replace(place, leaf=states.evaluated(place.leaf, reader.inventory))
          for place in rules.places(own, family.table(cfg.to_dict()))]


def origins(source, family, record, cfg):
  """Dict name of a tensor that is written twice -> name of the tensor that it repeats."""
  copied = record['copies'] if record else family.copied(cfg.to_dict())
  if not set(copied) <= set(family.COPIES):
    raise errors.Damaged(source / 'imported.json', f'has copies that are none: {copied!r:.80}')
  return {copy: family.COPIES[copy] for copy in copied}


def imported(source):
  """The dict in imported.json of a run directory, {} of a run trained here; its dtypes are such."""
  record = records.imported(source)
  kinds = [record['dtype'], *record['dtypes'].values()] if record else []
  unknown = next((kind for kind in kinds if kind not in (*files.DTYPES, repacked.KIND)), None)
  if unknown is not None:
    raise errors.Damaged(source / 'imported.json', f'has the dtype {unknown!r:.80}')
  return record


def check_whole(source, name, cfg):
  """Raises UserError for a model of configuration `cfg` with an adapter: a family has matrices alone."""
  model = axes.abstract(lambda: states.build(cfg))
  if not any('adapter' in words for words in modules.labels(model).values()):
    return
  routes = any(True for _ in modules.offering(model, 'unmergeable'))
  merged = plugins.command('compress', str(source), 'merge_adapter', '--workdir', 'MERGED')
  raise errors.UserError(f'{source} has an adapter, for which the family {name} has no form; nearest: '
                         f'--adapter, for the adapter alone{"" if routes else f"; or first: {merged}"}')


def original(source, name, record):
  """The config.json that came with the run `source`, or with its start, to family `name`; {} where none did.

  record: of `imported`, of this family or {}; such a run has that file.
  """
  file = source / 'source' / 'config.json'
  kept = documents.read_json(file) if record or file.is_file() else {}
  return kept if record or kept and fields.family(kept)[0] == name else {}


def typed(hf, original_fields, record, layout):
  """config.json `hf`, None = `original_fields`, whose dtype is that of most tensors in `layout`.

  A dtype as it was imported stays as it is, and none is put where there was none.
  """
  kinds = [kind for kind, _ in layout.values() if kind in KINDS]
  usual = max(sorted({*kinds}), key=kinds.count)
  stated = original_fields if hf is None else hf
  right = {key: KINDS[usual] for key in ('dtype', 'torch_dtype') if stated.get(key) is not None}
  return hf if usual == record.get('dtype') or right.items() <= stated.items() else stated | right


def described(original_fields, family, c):
  """The config.json of a model, or None where the imported one, `original_fields`, still says it.

  Raises UserError if the family has no such model.
  """
  tied = c['model'].get('tie_embeddings', True)
  original_fields = {key: value for key, value in original_fields.items()
                     if key != repacked.FIELD}                       # see `repacked.described`
  if not original_fields:
    new_fields = exported.ids(c['model']) | family.describe(c)
  else:
    changed = fields.differences(c, family.configure(original_fields, tied))
    if not changed:
      return None
    moved = any(text.startswith('rotary_') for text in changed)
    kept = {key: value for key, value in original_fields.items() if not (moved and key in POSITIONS)}
    new_fields = kept | (family.describe(c) if moved else _but_positions(family, c))
  unlike = fields.differences(c, family.configure(new_fields, tied))
  if unlike:
    raise errors.UserError(f'the model is not of the family {new_fields["model_type"]}, whose '
                           f'{rules.some(unlike)}')
  return new_fields


def _but_positions(family, c):
  """The fields that a family says of configuration `c`, without those of positions."""
  model = {key: value for key, value in c['model'].items() if not key.startswith('rotary_')}
  return {key: value for key, value in family.describe(c | dict(model=model)).items() if key not in POSITIONS}


def fill(reader, placed, made, advance):
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
  block = reader.piece(store, place.leaf, where)
  tensor.write(first, pieces.turned(block, place, block.dtype))
  size = tensor.size * (last - first) // tensor.shape[0]
  return place.leaf, reader.share(block, store.shape, where), size
