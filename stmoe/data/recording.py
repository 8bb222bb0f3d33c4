"""Recordings of routing: a file with a batch of texts and the experts that a model gave to its tokens.

An npz without pickle (`stmoe record`, `stmoe infer --record`):
  batch/NAME    the entries of N rows, i32[N,T], as the recorded model read them
  routes/STACK  i16[N,T,L,n] or i32: n experts of a token in each of the L routers of a stack, in the order in
                which these are called; -1 where a choice was dropped or is none
  about         JSON: what follows, with digests of the model's routers, of the batch and of all there is
`About` says which model and batch a recording is of. A file of another form, or with a byte changed, is one
line.
"""

import dataclasses
import hashlib
import io
import json
import pathlib

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.data import record as records

VERSION = 1
BATCH, ROUTES, ABOUT = 'batch/', 'routes/', 'about'
COMMAND = 'stmoe record RUN --output FILE'


@dataclasses.dataclass(frozen=True)
class About:
  """What a recording is of.

  run, step:  the run directory and its checkpoint, for people.
  objective:  data.objective and its fields, of which the rows were made; row lengths are the recording's.
  vocabulary: digest.
  routers:    'NAME:E:k' of every router that reports, sorted; see `routers`.
  choices:    n.
  text:       facts of the text by which bits a byte are counted (see `info` of data/batches.py), {} without.
  """
  run: str
  step: int
  objective: dict
  vocabulary: str
  routers: list
  choices: int
  text: dict


def digest(arrays: dict) -> str:
  """Returns the hex digest of dict name -> array."""
  made = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    made.update(repr((name, array.shape, array.dtype.str)).encode())
    made.update(np.ascontiguousarray(array).tobytes())
  return made.hexdigest()


def _sealed(about, arrays):
  """The dict that stands in the entry `about`: with digests, the last one of all."""
  batch = {name: array for name, array in arrays.items() if name.startswith(BATCH)}
  fields = dataclasses.asdict(about) | dict(version=VERSION, batch=digest(batch),
                                            model=hashlib.sha256('\n'.join(about.routers).encode()).hexdigest())
  whole = hashlib.sha256((json.dumps(fields, sort_keys=True) + digest(arrays)).encode()).hexdigest()
  return fields | dict(sha256=whole)


def write(path: str | pathlib.Path, about: About, batch: dict, routes: dict) -> None:
  """Writes a recording, whole or not at all.

  Args:
    batch:  dict name -> i32[N,T]; rows without a token are left out.
    routes: dict stack -> i32[N,T,L,n].
  """
  real = np.any([array.any(1) for name, array in batch.items() if name.endswith('_segment_ids')], axis=0)
  arrays = {BATCH + name: array[real] for name, array in batch.items()}
  small = lambda a: a.astype(np.int16) if a.max(initial=0) < 1 << 15 else a
  arrays |= {ROUTES + stack: small(array[real]) for stack, array in routes.items()}
  if (size := sum(array.nbytes for array in arrays.values())) > files.LARGEST:
    raise errors.UserError(f'{path} would hold {size:,} bytes, and at most {files.LARGEST:,} are read; '
                           'nearest: fewer --batches')
  text = json.dumps(_sealed(about, arrays), sort_keys=True).encode()
  content = io.BytesIO()
  np.savez_compressed(content, **arrays, about=np.frombuffer(text, np.uint8))
  files.write_bytes(path, content.getvalue())


def read(path: str | pathlib.Path) -> tuple[About, dict, dict]:
  """Returns (About, batch, routes) as `write` got them; raises errors.Damaged for anything else.

  Raises UserError for a folder, such as the run that is to be recorded first.
  """
  if pathlib.Path(path).is_dir():
    raise errors.UserError(f'{path} is a folder, not a recording of routing; nearest: that of `{COMMAND}`')
  arrays = files.read_arrays(path)
  try:
    fields = files.parse_json(arrays.pop(ABOUT).tobytes().decode())
    about = About(**{field.name: fields[field.name] for field in dataclasses.fields(About)})
  except (KeyError, ValueError, AttributeError) as error:
    raise errors.Damaged(path, f'is no recording of routing, which `{COMMAND}` makes') from error
  if fields.get('version') != VERSION:
    raise errors.Damaged(path, f'is a recording of version {fields.get("version")}; wanted: {VERSION}')
  if _sealed(about, arrays) != fields:
    raise errors.Damaged(path, 'is not as it was recorded: its digest differs')
  part = lambda kind: {name.removeprefix(kind): a for name, a in arrays.items() if name.startswith(kind)}
  return about, part(BATCH), part(ROUTES)


def routers(model, reported: dict) -> list[str]:
  """Returns 'NAME:E:k' for every name under which a layer of `model` reports, sorted; k '' where not said.

  With virtual experts the text is 'NAME:E+Z:k'.

  Args:
    model:    with numbers or without.
    reported: dict name -> Aux of shapes, of `train.check.forward`.
  """
  known = {name: layer for stack in model.stacks() for name, layer in stack.by_name().items()}

  def described(name, number):
    own = [part.router for part in modules.sparse(known[name])] if name in known else []
    virtual = max(number - sum(router.num_experts for router in own), 0) if own else 0
    experts = f'{number - virtual}+{virtual}' if virtual else number
    return f'{name}:{experts}:{"+".join(str(contract.offered(router, "k")) for router in own)}'
  return sorted(described(name, aux.load.shape[-1]) for name, aux in reported.items())


def experts(about: About, stack: str) -> list[int]:
  """Returns E of each router of a stack, without virtual experts, in the order in which these are called.

  >>> names = ['decoder_02:8+2:2', 'decoder_10.attention:4:1', 'decoder_10:16:2', 'encoder_01:2:1']
  >>> experts(About('', 0, {}, '', names, 2, {}), 'decoder')
  [8, 4, 16]
  """
  own = [text.rsplit(':', 2)[:2] for text in about.routers if text.startswith(f'{stack}_')]

  def called(pair):
    block, _, part = pair[0].removeprefix(f'{stack}_').partition('.')
    return int(block), not part, part                                # attention comes before the layer
  return [int(number.partition('+')[0]) for _, number in sorted(own, key=called)]


def replay(cfg: ml_collections.ConfigDict, path: str | pathlib.Path, run: str | pathlib.Path | None = None
           ) -> About:
  """Gives `cfg` a recording as its data, in place: its routers are told their choices; returns the About.

  Tasks are not judged on such data, and no checkpoint is chosen by their scores.

  Args:
    run: the run directory that knows the vocabulary of `cfg`; None = it is made of the data of `cfg`.
  """
  about, batch, _ = read(path)
  if not hasattr(lookup.source(cfg.data), 'rule'):
    raise errors.UserError(f'--replay {path}: recordings are of texts, {lookup.titled(cfg.data)} are none')
  lengths = {name.partition('_')[0]: array.shape[1] for name, array in batch.items()}
  sides = lookup.constructor('objective', about.objective['objective']).sides
  vocabulary = pipeline.vocabulary(cfg, records.read(run))
  kept = {field: cfg.data[field] for field in ('cache_dir', 'shuffle', 'extra_ids') if field in cfg.data}
  data = dict(source='recorded', files=(str(pathlib.Path(path).absolute()),), eval_split='validation',
              vocab=str(getattr(vocabulary, 'path', cfg.data.vocab)), routers=tuple(about.routers),
              choices=about.choices)
  with cfg.unlocked(), cfg.ignore_type():
    cfg.data = kept | data | about.objective | {field: lengths[side] for side, field in sides.items()}
    for section, field, none in (('eval', 'methods', ()), ('checkpoint', 'best', '')):
      if field in cfg[section]:
        cfg[section][field] = none
  return about
