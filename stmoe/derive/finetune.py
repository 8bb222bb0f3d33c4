"""Fine-tuning: a new run that starts with the parameters of another run, ours or an imported one.

The model is the start's unless `finetune.model='own'`; then the recipe of section `finetune` changes it:
  model:               'start', or 'own': the configuration's, which takes from the start what fits.
  load:                'all' parameters must be there and fit; 'body': all but the head's, which is new;
    with 'partial' missing parameters are new. What a module makes fit itself (`refit`), such as positions of
    images of another size, fits.
  fields:              of section model, in place of the start's: dict(vocab_size=10). What the rows of data
    other than text are like, such as their image_size, section data says.
  optimizer:           'fresh' slots, or 'keep' the start's (ST-MoE: keeping helps, arXiv:2202.08906, sec. 5).
  dropout_rate:        everywhere but in experts; None = as the start.
  expert_dropout_rate: in experts (Switch, arXiv:2101.03961, section 2.4); None = as the start.
  capacity_factor:     (train, eval) of routers that drop tokens; None = as the start.
  aux:                 False switches the losses of routers off.
  adapter:             '' or what is put beside the start's parameters, NAME[:field=value,...] of a file of
    stmoe/surgery with a function `adapt`: 'lora:rank=16,targets=attention+layer'. What the start has does not
    train then, unless train.trainable or groups say so.

train.trainable and section groups (train/groups.py) say which parameters train, and how. Steps count from 0.
"""

import contextlib
import itertools
import pathlib

from flax import nnx
import jax

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.checkpoints import best
from stmoe.checkpoints import checkpoint
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.derive import refit
from stmoe.derive import start as starts
from stmoe.parts import adapting
from stmoe.runs import directory as rundir
from stmoe.runs import records as kept
from stmoe.surgery import layout
from stmoe.surgery import sparse
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import groups
from stmoe.train import loop
from stmoe.train import optimizers
from stmoe.train import state as states
from stmoe.train import taskscore


def adopt(cfg, start):
  """Changes `cfg`, of a fine-tuning experiment, to the model and vocabulary of config `start`, in place.

  Raises UserError where the start cannot do the task.
  """
  recipe = cfg.get('finetune')
  if recipe is None:
    raise errors.UserError('the experiment has no section finetune; nearest: finetune/jsonl, finetune/task '
                           'of texts, vmoe/finetune of images, or c.finetune = dict() in a file of your own')
  of_text = 'vocab' in cfg.data
  if of_text and not hasattr(lookup.source(start.data), 'vocab'):
    raise errors.UserError(f'the start is a {start.model.name} of {lookup.source(start.data).kind}; these '
                           'tasks need a model of text')
  with cfg.unlocked(), cfg.ignore_type():
    if of_text:
      cfg.data.extra_ids = start.data.extra_ids
    if recipe.model == 'start':
      cfg.model, cfg.blocks, cfg.losses = (_copy(start[part]) for part in ('model', 'blocks', 'losses'))
      _fields(cfg, {} if of_text else cfg.data)
      _lengths(cfg, start)
    if 'param_dtype' in cfg.model and not recipe.adapter:
      del cfg.model.param_dtype          # small updates would be rounded away
    _apply(cfg, recipe)
    if recipe.adapter:
      _adapt(cfg, recipe.adapter)


def _copy(section):
  return type(section)(section.to_dict())


def _fields(cfg, data):
  """Puts the recipe's fields into the model, and those of section `data` that the model has, too."""
  known, own = lookup.fields('model', cfg.model.name), cfg.finetune.get('fields', {})
  for field in own:
    if field not in known:
      raise errors.UserError(f'finetune.fields.{field}: model {cfg.model.name} of the start has no such field'
                             f'{errors.nearest(field, known)}')
  cfg.model.update({field: data[field] for field in data if field in known} | dict(own))


def _adapt(cfg, adapter):
  """Puts what the text `adapter` names into the model of `cfg`."""
  changed = sparse.changed(cfg, lookup.bound('adaptation', adapter)(cfg))
  for section in changed:
    cfg[section] = changed[section]


def _lengths(cfg, start):
  """Fits the data to the kind of model, and groups of tokens to the new lengths of rows."""
  if 'encoder' not in cfg.model and 'inputs_length' in cfg.data:     # pairs; rows of text stay what they are
    data = cfg.data.to_dict()
    length = data.pop('inputs_length') + data.pop('targets_length')
    cfg.data = data | dict(objective='prompted', length=length)
  was, new_lengths = _stacks(start), _stacks(cfg)
  for stack in ('encoder', 'decoder', 'layers'):
    for letter in {letter for letters, _ in cfg.model.get(stack, ()) for letter in letters}:
      for layer in lookup.nested(cfg.blocks[letter]):
        if layer.get('group_size') and was.get(stack) and new_lengths[stack]:
          sequences = max(layer.group_size // was[stack], 1)
          layer.group_size = sequences * new_lengths[stack]


def _stacks(cfg):
  """Dict stack -> tokens of a row; `layers` of a model of one stack are its only stack."""
  lengths = lookup.source(cfg.data).lengths(cfg.model)
  return dict(lengths, layers=lengths.get('encoder', lengths.get('decoder')))


def _apply(cfg, recipe):
  """Puts the recipe's rates and capacities where the model has them."""
  fields_of = lambda kind, fields: lookup.fields(kind, fields['name'])
  if recipe.dropout_rate is not None and 'dropout_rate' in fields_of('model', cfg.model):
    cfg.model.dropout_rate = recipe.dropout_rate
  for layer in [layer for block in cfg.blocks.values() for layer in lookup.nested(block)]:
    if recipe.dropout_rate is not None and layer.get('layer') == 'dense':
      layer.dropout_rate = recipe.dropout_rate
    if 'experts' in layer and recipe.expert_dropout_rate is not None:
      if 'dropout_rate' in fields_of('experts', layer.experts):
        layer.experts.dropout_rate = recipe.expert_dropout_rate
    for router in lookup.nested(layer.get('router')):
      drops = router.get('capacity_factor', recipe.capacity_factor) != (None, None)
      if recipe.capacity_factor is not None and drops and 'capacity_factor' in fields_of('router', router):
        router.capacity_factor = tuple(recipe.capacity_factor)
  if not recipe.aux:
    cfg.losses = {name: (0.0, reduction) for name, (_, reduction) in cfg.losses.items()}


def vocabulary(cfg, start, run):
  """Sets data.vocab of `cfg` to the vocabulary with which `run`, of config `start`, was trained."""
  spec = start.data.vocab
  if cfg.data.vocab != spec or spec == 'bytes':
    return
  try:
    path = pipeline.vocabulary(start, found=records.read(run)).path
  except errors.UserError as error:
    if not spec.startswith('train:'):
      raise
    raise errors.UserError(f'the vocabulary of {run} is made of its data, which is not there ({error}); '
                           'give it with --config.data.vocab=PATH') from error
  if str(path) != spec:
    with cfg.unlocked():
      cfg.data.vocab = str(pathlib.Path(path).absolute())


def finetune(run, cfg, workdir, name='', step=None, devices=None, say=print):
  """Writes the first checkpoint of `cfg` in `workdir` from that of `run`, and trains; returns the exit code.

  A run that is there already goes on. All mistakes are found before anything is written.

  Args:
    run:     run directory to start from; step: which of its checkpoints, None = the newest.
    cfg:     after `adopt` and `vocabulary`.
    workdir: run directory to be.
    name:    of the experiment, for the records.
    say:     called with lines of text.
  """
  if not _begun(workdir):
    check.counts(cfg)
    rundir.verify(workdir, cfg)
    loop.keep_compilations()
    with states.on_mesh(cfg.mesh, devices) as mesh:
      check.batches(cfg)
      plan = states.blueprint(cfg, mesh)
      check.forward(cfg, plan)
      opened = pipeline.source(cfg)
      facts = opened.info()
      check.vocabulary(cfg, plan, facts['vocab'])
      measures = evaluate.measured(cfg, plan, opened)
      best.Best(cfg, workdir, taskscore.Scorer(cfg, plan, opened).names(), measures)
      state, record = _load(run, cfg, plan, facts['vocab'], step)
      position = pipeline.beginning(cfg, opened)
      for line in describe(record):
        say(line)
      with rundir.own(workdir) as path:
        rundir.verify(path, cfg)
        if not _begun(path):                                         # by another process, meanwhile
          parents = [starts.parent(run, record['step'])]
          origin = starts.origin('finetune', cfg.finetune.to_dict(), parents, record)
          starts.inherit(path, run, ['source'])                        # an export says what the import said
          starts.write(path, cfg, state, position, origin, vocabulary=facts['vocab'].digest)
          records.write(path, cfg, opened, check.files(plan))
  return loop.train(cfg, workdir, name, devices)


def _begun(workdir):
  """Whether `workdir` holds the run; without config.json a checkpoint of step 0 is what a kill left.

  Raises UserError for later checkpoints without it.
  """
  steps = rundir.saved(workdir)
  if any(steps) and not rundir.is_run(workdir):
    raise errors.UserError(f'{workdir} has checkpoints and no config.json; choose another --workdir')
  return bool(steps) and rundir.is_run(workdir)


def _load(run, cfg, plan, vocab, step):
  """(first state, facts about what was loaded) with the parameters of `run` in place."""
  folder, recipe = pathlib.Path(run) / 'checkpoints', cfg.finetune
  starts.trained(run)
  parts = ['params', 'router_state'] + ['opt_state'] * (recipe.optimizer == 'keep')
  averages = dict(opt_state={optimizers.AVERAGES: plan.shapes['params']})
  wanted = layout.together({part: plan.shapes[part] for part in parts}, averages)
  # Labels are known to the head alone, which need not be the start's.
  known = {} if recipe.load != 'all' and 'vocab' not in cfg.data else dict(vocab=vocab.digest)
  same = lambda meta: rundir.check_same(meta, known)
  with contextlib.closing(checkpoint.Checkpoints(folder, keep=None, read_only=True)) as saved:
    at, found, stored = saved.part(wanted, same, step)
    refitted = _refitted(plan, stored, lambda shapes: saved.part(shapes, same, at)[1])
  shapes = {_name(path): tuple(s.shape) for path, s in jax.tree.leaves_with_path(plan.shapes)}
  names = [name for name in shapes if name.split('/')[0] in parts]
  of_head = _belonging(cfg, 'head', names)
  anew = of_head if recipe.load == 'body' else set()
  loaded = {name: x for name, x in _evaluated(found | refitted, names).items() if name not in anew}
  missing = [name for name in names if name not in loaded]
  begins = anew | refit.below([name.removeprefix('params/') for name in refitted], names)      # their slots
  begins |= _belonging(cfg, 'adapter', names) if recipe.adapter else set()
  lost = [name for name in missing if name not in begins]
  if lost and recipe.load != 'partial':
    of_slots = all(name.startswith('opt_state/') for name in lost)
    nearest = 'optimizer=fresh' if of_slots else 'load=body' if of_head.issuperset(lost) else 'load=partial'
    raise errors.UserError(
        f'{lost[0]} is {shapes[lost[0]]} in the new model and {stored.get(lost[0], "absent")} in '
        f'{run} ({len(lost)} of {len(names)} arrays do not fit); nearest: --config.finetune.{nearest}')
  if not any(name.startswith('params/') for name in loaded):
    raise errors.UserError(f'{run} has no parameter of the new model: it is of another architecture')
  take = lambda tree: jax.tree.map_with_path(lambda path, x: loaded.get(_name(path), x), tree)
  state = take(states.init(cfg, plan))
  state |= dict(params=_magnitudes(plan, state, set(missing)))
  if {*optimizers.COPIES} & {*state['opt_state']}:                   # these begin as what was loaded
    begin = jax.jit(plan.optimizer.init, out_shardings=plan.shardings()['opt_state'])
    state |= take(dict(opt_state=begin(plan.trainable(state['params']))))
  ignored = [name for name in stored if name.startswith('params/') and name not in loaded]
  params = plan.shapes['params']
  trained, parameters = (sum(x.size for x in jax.tree.leaves(t)) for t in (plan.trainable(params), params))
  return state, dict(start=str(run), step=at, loaded=sorted(loaded), new=sorted(missing),
                     refitted=sorted(set(refitted) & set(loaded)), ignored=sorted(ignored), trained=trained,
                     parameters=parameters, trainable=groups.described(cfg), family=kept.family(run))


def _evaluated(found, names):
  """Dict path -> array of what is loaded as `names`; parameters are averages, unless these are among them."""
  loaded = {name: found[name] for name in names if name in found}
  for name in set(names) & {name for name in found if name.startswith('params/')}:
    average = name.replace('params', f'opt_state/{optimizers.AVERAGES}', 1)
    if average not in loaded:
      loaded[name] = found.get(average, loaded[name])
  return loaded


def _refitted(plan, stored, read):
  """Dict path -> parameter, and its average, that a module makes of one of another shape (`refit`).

  Args:
    stored: dict path -> shape of the arrays of the start.
    read:   nested dict of ShapeDtypeStructs -> dict path -> array.
  """
  made = {}
  everywhere = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec())
  for (path, new, fit), above in itertools.product(
      refit.offers(plan), (('params',), ('opt_state', optimizers.AVERAGES))):
    place, wanted = (*above, *path), {}
    name = '/'.join(map(str, place))
    if stored.get(name, new.shape) != new.shape:
      layout.put(wanted, place, jax.ShapeDtypeStruct(stored[name], new.dtype, sharding=everywhere))
      array = fit(read(wanted)[name])
      if array is not None and array.shape == new.shape:
        made[name] = jax.device_put(array, new.sharding)
  return made


def _belonging(cfg, label, names):
  """Those of `names` that are parameters with a label of `modules.labels`, and their slots."""
  labels = modules.labels(axes.abstract(lambda: states.build(cfg)))
  return refit.below(['/'.join(map(str, path)) for path, words in labels.items() if label in words], names)


def _magnitudes(plan, state, new):
  """The parameters of `state`, where the magnitudes whose names are in `new` are those of its matrices."""
  params = state['params']
  for path, magnitude in adapting.begun(nnx.merge(plan.graphdef, params, state['router_state'])).items():
    if '/'.join(map(str, ('params', *path))) in new:
      part: dict = {}
      layout.put(part, path, jax.device_put(magnitude, layout.at(params, path).sharding))
      params = groups.put(params, part)
  return params


def describe(record):
  """Yields lines about what was loaded."""
  yield (f'from step {record["step"]:,} of {record["start"]}: {len(record["loaded"])} arrays loaded, '
         f'{len(record["new"])} new, {len(record["ignored"])} of the start not used; '
         f'{record["trained"]:,} of {record["parameters"]:,} parameters train ({record["trainable"]})')
  for title in ('new', 'refitted', 'ignored'):
    if record[title]:
      more = f' and {len(record[title]) - 5} more' if len(record[title]) > 5 else ''
      yield f'{title}: {", ".join(record[title][:5])}{more} (all in ancestry.json)'


def own(name, overrides):
  """Returns (configuration, canonical name, overrides that are in it) of an experiment, without a start."""
  early = [text for text in overrides if text.removeprefix('--config.').startswith(('finetune.', 'data.'))]
  return *experiment.load(name, early), early


def prepare(name, overrides, run, step=None):
  """Returns (configuration, canonical name) of experiment `name` for fine-tuning from run directory `run`.

  step: of the checkpoint to start from; None = the newest.
  """
  start = records.read(run).located(rundir.trusted(run, step))
  cfg, name, early = own(name, overrides)
  names_vocabulary = 'vocab' not in cfg.data or any(
      text.removeprefix('--config.').startswith('data.vocab=') for text in early)
  if not names_vocabulary:
    with cfg.unlocked():
      cfg.data.vocab = start.data.get('vocab', '')
  adopt(cfg, start)
  experiment.override(cfg, [text for text in overrides if text not in early], whole=False)
  if not names_vocabulary:
    vocabulary(cfg, start, run)
  return cfg, name


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')
