"""Everything about a configuration that can be wrong is found here, before anything is compiled."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import sections
from stmoe import targets
from stmoe.data import batches as pipeline
from stmoe.train import beside
from stmoe.train import router_losses as losses
from stmoe.train import schedules

ROOM = ('vocab_size', 'num_outputs')     # fields of models that say how many ids they predict


def counts(cfg):
  """Completes `cfg`; raises UserError for fields that are missing or out of range, and misfitting losses."""
  sections.complete(cfg)
  sections.check(cfg, whole=False)
  sections.present(cfg)
  lookup.recipe('target', cfg.loss)()
  schedules.of(cfg.schedule, cfg.train.steps)


def trains(cfg):
  """Raises UserError for parameters of two bytes: their updates would mostly be rounded away."""
  if cfg.model.get('param_dtype', 'float32') != 'float32':
    raise errors.UserError(f'model.param_dtype={cfg.model.param_dtype!r} is for models that do not train: '
                           'small updates would be rounded away; nearest: --config.model.param_dtype=float32')


def batches(cfg):
  """Raises UserError unless the batches divide into microbatches and over the devices of the current mesh."""
  shards = axes.num_shards('batch')
  for field, size, parts in (('train.batch_size', cfg.train.batch_size, cfg.train.microbatches),
                             ('eval.batch_size', cfg.eval.batch_size, 1)):
    if size % (parts * shards):
      low = size // (parts * shards) * parts * shards
      near = ', '.join(str(n) for n in (low, low + parts * shards) if n)
      over = ' x '.join(axes.mesh_axes('batch'))
      raise errors.UserError(f'{field}={size} is not divisible by {parts} microbatches x {shards} devices '
                             f'that share a batch (mesh {over}); nearest: {near}')


def batch_shapes(cfg, rows):
  """Returns dict name -> ShapeDtypeStruct of a batch of configuration `cfg`, as its source of data has it."""
  shapes = pipeline.shapes(lookup.source(cfg.data), rows)
  return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def forward(cfg, plan):
  """Returns dict layer -> Aux of shapes, from an abstract forward pass of both kinds of batches.

  Raises UserError for group sizes that do not divide and for weighted losses nobody reports. Raises it also
  where model, data and target do not fit together. `targets` of a model and of a source of data ('ids' if
  absent) are among the `kinds` of the target, and so are their shapes. A source may say itself (`fits`) which
  models its batches are for.
  """
  kind = lambda owner: getattr(owner, 'targets', 'ids')
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  wanted, kinds = kind(lookup.source(cfg.data)), kind(model)
  kinds = (kinds,) if isinstance(kinds, str) else kinds
  if wanted not in kinds:
    raise errors.UserError(f'model.name={cfg.model.name!r} predicts {" or ".join(kinds)}, and the targets of '
                           f'{lookup.titled(cfg.data)} are {wanted}')
  if wanted not in plan.target.kinds:
    near = [name for name in lookup.available('target') if wanted in lookup.constructor('target', name).kinds]
    raise errors.UserError(f'loss.name={cfg.loss.get("name", lookup.UNNAMED["target"])!r} judges '
                           f'{" or ".join(plan.target.kinds)}, and the targets of {lookup.titled(cfg.data)} '
                           f'are {wanted}; nearest: {", ".join(near)}')

  aux, _ = _reports(cfg, plan, cfg.train.batch_size // cfg.train.microbatches, True)
  judged(cfg, plan)
  source = lookup.source(cfg.data)
  if hasattr(source, 'fits'):
    source.fits(model, aux)
  losses.check(aux, cfg.losses)
  return aux


def judged(cfg, plan):
  """Returns what the target's `judge` says of an evaluation batch, as shapes."""
  return _reports(cfg, plan, cfg.eval.batch_size, False)[1]


def _reports(cfg, plan, rows, train):
  """(dict layer -> Aux, what `judge` says) of shapes, of a batch of `rows`."""
  def call(params, routers, batch, key):
    model = plan.model(params, routers)
    outputs, aux = targets.predict(plan.target, model, batch, key=key, train=train)
    if train and plan.target.passes == 1:
      targets.loss(plan.target, outputs, batch, targets.counts(plan.target, model, batch))
    return aux, targets.judge(plan.target, outputs, batch)
  return jax.eval_shape(call, plan.shapes['params'], plan.shapes['router_state'],
                        beside.shapes(plan, batch_shapes(cfg, rows)), plan.shapes['key'])


def needed(cfg, plan):
  """Raises UserError for a router with a part that only losses train, of which `cfg` weighs none."""
  losses.check_needed(plan.model(plan.shapes['params'], plan.shapes['router_state']), cfg.losses)


def vocabulary(cfg, plan, found):
  """Raises UserError if the data has more ids than the model, or a module is made for other ids.

  A module says so by its attribute `vocabulary`: the digest of the only vocabulary it is made for, or None.

  Args:
    plan:  the Blueprint of the model.
    found: the vocabulary of the data.
  """
  size, room = found.vocab_size, next((field for field in ROOM if cfg.model.get(field)), None)
  if room and size > cfg.model[room]:
    multiple, what = -(-size // 128) * 128, next((f for f in ('vocab', 'task', 'files') if f in cfg.data), '')
    said = f'data.{what}={cfg.data[what]!r}' if what else lookup.titled(cfg.data)
    faster = f' or, faster, {multiple}' if 'vocab' in cfg.data else ''
    raise errors.UserError(f'model.{room}={cfg.model[room]}, but {said} has {size} ids; set model.{room}='
                           f'{size}{faster}')
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  for path, part in modules.offering(model, 'vocabulary'):
    if part.vocabulary != found.digest:
      raise errors.UserError(f'{".".join(map(str, path))} is made for another vocabulary '
                             f'({part.vocabulary[:12]}) than data.vocab={cfg.data.vocab!r} is '
                             f'({found.digest[:12]}); make it again')


def answers(plan, facts):
  """Raises UserError for data that the target cannot judge; `facts` are of `info` of data/batches.py."""
  if hasattr(plan.target, 'fits'):
    plan.target.fits(facts)


def files(plan):
  """Returns the sorted paths of the files that the modules of a model are made of: attributes `file`."""
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  named = (getattr(module, 'file', None) for _, module in nnx.iter_graph(model))
  return sorted({file for file in named if isinstance(file, str)})


def place(batch, mesh):
  """Returns the rows of this process as global arrays, split over the mesh axes of 'batch'.

  What belongs to a stack, STACK_NAME, is [B,T,...]: its second axis is 'length'.
  """
  def sharding(name, x):
    tokens = name.startswith(('encoder_', 'decoder_'))
    return jax.sharding.NamedSharding(mesh, axes.spec(('batch', 'length')[:2 if tokens else 1]))
  return {name: jax.make_array_from_process_local_data(sharding(name, x), x) for name, x in batch.items()}
