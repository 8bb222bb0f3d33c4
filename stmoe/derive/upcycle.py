"""Upcycling of runs: the first checkpoint of a sparse run from trained runs, and what the surgery changed.

The parameters are made by `surgery.upcycle` from dense runs, by `surgery.aggregate` from sparse ones. For
images of another size positions are resized first, as in V-MoE's released code (derive/refit.py). The
optimizer's slots start empty, or the experts take over the slots of what they come from. The step counter
goes on, and with it the schedule. The data goes on where the dense run stopped if seed, data and batch size
are the dense run's. Otherwise, and with several dense runs, the data starts from the beginning.

Differs: T5X decays Adafactor's second moments by the global step. Here empty slots begin to count at 0. So
  the first step after the surgery is not divided by a moment that is nearly 0.
"""

import copy
import functools
import inspect

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.derive import refit
from stmoe.derive import start as starts
from stmoe.runs import directory as rundir
from stmoe.surgery import aggregate as aggregation
from stmoe.surgery import upcycle as surgery
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import loop
from stmoe.train import opened
from stmoe.train import state as states

# Fields of a model that may differ from the dense run's: they say where layers are, how to compute them, and
# where decoding ends. Positions are made to fit images of another size, see `refit`. What the first token
# follows may not differ: the dense run has learned to begin after it.
FREE = ('encoder', 'decoder', 'layers', 'scan_layers', 'remat', 'dtype', 'dropout_rate', 'init_scale',
        'end_ids', 'forced_id', 'start_prompts', 'image_size')
IMPOSSIBLE = -1e8                  # logits below it stand for what a model rules out


def upcycle(runs, cfg, workdir, show, *, noise=0.0, granularity=1, scale=None, base='average',
            optimizer='fresh', step='keep', devices=None):
  """Writes the first checkpoint of `cfg` in `workdir` from trained runs; returns the facts of ancestry.json.

  dict(step; runs: list of dict(run, step, 'eval/...'); upcycled: dict 'eval/...'; gap: loss of the upcycled
  model minus that of the (best) run; difference: norm of the change of the logits of one
  batch over theirs; parameters: (old, new); leaves: see `surgery.upcycle.report`; the options).
  All is evaluated on the data of `cfg`.

  Args:
    runs:      run directories; several are mixed. Dense runs become experts (`surgery.upcycle.upcycle`), the
      experts of sparse runs are put side by side (`surgery.aggregate.aggregate`).
    cfg:       configuration of the new model.
    workdir:   run directory to be; must hold no run.
    show:      a `progress` that is told what is done.
    noise, granularity, scale, base: see the surgeries; scale None = 1, or what granularity and the
      routers' gates need.
    optimizer: 'fresh' or 'reuse'; step: 'keep' or 'zero'.
    devices:   None = all.
  Raises:
    UserError: `workdir` is in use, a run is of another backbone, or nothing is left to train.
  """
  options = dict(noise=noise, granularity=granularity, scale=scale, base=base, optimizer=optimizer, step=step)
  _check(runs, cfg, workdir, options)
  cfgs = [records.read(run).located(rundir.opened(run)) for run in runs]
  for run, start in zip(runs, cfgs):
    same_backbone(run, start, cfg)
  loop.keep_compilations()
  with states.on_mesh(cfg.mesh, devices) as mesh:
    check.batches(cfg)
    plan, plans = states.blueprint(cfg, mesh), [states.blueprint(_sized(start, cfg), mesh) for start in cfgs]
    check.forward(cfg, plan)
    source = pipeline.source(cfg)
    record, state, spent = _made(runs, cfgs, plans, cfg, plan, source, options, show)
    _write(cfg, workdir, plan, state, source, record, options, spent)
  return record


def _made(runs, cfgs, plans, cfg, plan, source, options, show):
  """(facts of ancestry.json, first state, FLOPs spent) of `cfg` from the newest checkpoints of `runs`."""
  vocabulary = source.info()['vocab']
  check.vocabulary(cfg, plan, vocabulary)
  make = _maker(cfg, plan, plans, options)
  jax.eval_shape(make, [start.shapes for start in plans])            # finds mistakes before reading anything
  for run, start in zip(runs, plans):
    same_activations(run, start, plan)
  restored = [_restored(run, *start, vocabulary, show.say) for run, *start in zip(runs, cfgs, plans)]
  at = _first_step([at for at, *_ in restored], cfg) if options['step'] == 'keep' else 0
  position = _position(cfgs, restored, cfg, source)
  before = []
  for run, start, (steps, state, *_) in zip(runs, plans, restored):
    values = _evaluate(cfg, start, state, source, show, f'run {run}')
    before.append(dict(run=str(run), step=steps) | values)
  show.say('making the experts')
  state = jax.jit(make, out_shardings=plan.shardings())([state for _, state, *_ in restored])
  after = _evaluate(cfg, plan, state, source, show, 'upcycled model')
  params = [p.shapes['params'] for p in (plans[0], plan)]
  record = dict(
      step=at, runs=before, upcycled=after,
      gap=after['eval/loss'] - min(values['eval/loss'] for values in before),
      difference=difference(cfg, (plans[0], restored[0][1]), (plan, state)),
      parameters=[sum(x.size for x in jax.tree.leaves(p)) for p in params],
      data=position, **{name: options[name] for name in ('noise', 'granularity', 'base', 'optimizer')},
      leaves=aggregation.report(*params, len(runs)) if _are_sparse(plans) else surgery.report(params[1]))
  spent = {run: meta.get('flops', steps * loop.flops_per_step(start))          # of the runs before these, too
           for run, start, (steps, _, _, meta) in zip(runs, cfgs, restored)}
  return record, state, sum(spent.values())


def _sized(start, cfg):
  """Config `start` for images as large as those of `cfg`."""
  sized = copy.deepcopy(start)
  with sized.unlocked():
    sized.model.update({name: size for name, size in cfg.model.items() if name == 'image_size'})
  return sized


def _restored(run, start, plan, vocabulary, say):
  """What `opened.restore` returns of `run`, of config `start`; the state fits Blueprint `plan`."""
  own = states.blueprint(start, plan.mesh)
  at, state, position, meta = opened.restore(own, run, vocabulary, say)
  return at, refit.state(plan, state, run), position, meta


def _check(runs, cfg, workdir, options):
  """Raises UserError for a `workdir` that is in use, and for numbers that cannot be meant."""
  check.counts(cfg)
  starts.unused(workdir)
  if options['noise'] < 0:
    raise errors.UserError(f'--noise {options["noise"]}: must be at least 0')
  if options['granularity'] < 1:
    raise errors.UserError(f'--granularity {options["granularity"]}: must be at least 1')
  if options['granularity'] > 1 and options['optimizer'] == 'reuse':
    raise errors.UserError('the optimizer slots of a layer that is cut are not defined; with --granularity '
                           'take --optimizer fresh')
  for run in runs:
    starts.trained(run)


def _are_sparse(plans):
  """Whether the runs of the Blueprints have experts already."""
  return any('experts' in path.split('/') for path in surgery.report(plans[0].shapes['params']))


def same_backbone(run, start, cfg):
  """Raises UserError for a field of the model that differs between `run`, config `start`, and `cfg`."""
  dense, sparse = _model_fields(start), _model_fields(cfg)
  for field in sorted({*dense, *sparse} - set(FREE)):
    if dense.get(field) != sparse.get(field):
      raise errors.UserError(f'model.{field} is {dense.get(field)!r} in {run} and {sparse.get(field)!r} in '
                             f'the new model; nearest: --config.model.{field}={dense.get(field)}')


def _model_fields(cfg):
  """The model section of `cfg` with the defaults of what it leaves out."""
  fields = cfg.model.to_dict()
  parameters = inspect.signature(lookup.constructor('model', fields['name']).__init__).parameters
  return {name: p.default for name, p in parameters.items() if p.default is not p.empty} | fields


def same_activations(run, dense, plan):
  """Raises UserError for the first layer whose activation function is another one in the dense run."""
  for (name, dense_layer), (_, sparse_layer) in zip(_layers(dense), _layers(plan)):
    was, becomes = _activation(dense_layer), _activation(sparse_layer)
    if was != becomes:
      raise errors.UserError(f'layer {name} has activation {was!r} in {run} and {becomes!r} in the new model')


def _activation(layer):
  """The name of the activation function of a layer's experts, or of its innermost part that has one."""
  activations = lambda module: [part.activation for _, part in modules.offering(module, 'activation')]
  of_experts = [name for sparse in modules.sparse(layer) for name in activations(sparse)]
  return (of_experts or activations(layer) or [None])[-1]


def _layers(plan):
  """Yields (name, feed-forward layer) of every block of the model, without arrays."""
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  for stack in model.stacks():
    yield from ((name, layer) for name, layer in stack.by_name().items() if '.' not in name)


def _scale(plan, granularity, scale):
  """`scale` and `gates` of the surgery: as given, or what `granularity` and the routers make necessary."""
  if scale is not None:
    return dict(scale=scale)
  needs = {name: _needed(name, part.router, granularity)
           for name, layer in _layers(plan) for part in modules.sparse(layer)}
  if len(set(needs.values())) > 1:
    factors = {name: scale / gates for name, (scale, gates) in needs.items()}
    raise errors.UserError(f'layers need different scales ({factors}); give --scale')
  return dict(zip(('scale', 'gates'), next(iter(needs.values()), (1.0, 1.0))))


def _needed(name, router, granularity):
  """(`scale`, `gates`) of the surgery for the router of layer `name`."""
  k, normalized, total = (contract.offered(router, field) for field in ('k', 'normalize_gates', 'gates_sum'))
  gates = 1.0 if total is None else float(total)
  if granularity == 1:
    return 1.0, gates
  normalized = normalized if total is None else True
  if k is None or normalized is None:
    raise errors.UserError(f'router {type(router).__name__} of {name} does not say how many experts '
                           'a token has and what their gates add up to; give --scale')
  if k % granularity:
    raise errors.UserError(f'router of {name}: k={k} is not a multiple of --granularity {granularity}; '
                           f'nearest: k={max(1, k // granularity) * granularity}')
  return surgery.activation_scale(router.num_experts, granularity, k, normalized), gates


def _maker(cfg, plan, plans, options):
  """The function of the runs' training states that returns the new one; to be called under jit."""
  operate = _joining(plans, options) if _are_sparse(plans) else _copying(cfg, plan, options)

  def make(before):
    state = states.fresh(cfg, plan)
    params = operate([b['params'] for b in before], state['params'])
    slots = plan.optimizer.init(plan.trainable(params))
    if options['optimizer'] == 'reuse':
      old = [b['opt_state'] for b in before]
      slots = aggregation.aggregate(old, slots) if _are_sparse(plans) else _reuse(old, slots)
    counters = {part: before[0][part] for part in ('step', 'counts')} if options['step'] == 'keep' else {}
    return state | dict(params=params, opt_state=slots) | counters
  return make


def _copying(cfg, plan, options):
  """The function (parameters of dense models, of the new one) -> parameters with experts that are copies."""
  granularity = options['granularity']
  return functools.partial(
      surgery.upcycle, noise=options['noise'], base=options['base'], granularity=granularity,
      key=states.fold(cfg.seed, 'upcycle'), **_scale(plan, granularity, options['scale']))


def _joining(plans, options):
  """The function (parameters of sparse models, of the new one) -> parameters with the experts of all."""
  if len(plans) == 1:
    raise errors.UserError('the start is not dense: it has experts, which are put beside those of other '
                           'runs; nearest: the run twice')
  if options['noise'] or options['granularity'] > 1:
    raise errors.UserError('the runs are sparse: their experts are put side by side, none is copied or cut; '
                           'nearest: --noise 0, --granularity 1')
  return functools.partial(aggregation.aggregate, base=options['base'],
                           scale=1.0 if options['scale'] is None else options['scale'])


def _reuse(dense, slots):
  """Optimizer slots like `slots` from the list of slots of the dense runs; refuses what is ambiguous."""
  try:
    copied = surgery.upcycle(dense, slots)
  except errors.UserError as error:
    raise errors.UserError(f'optimizer slots: {error} (or --optimizer fresh)') from None
  shapes = {tuple(entry.key for entry in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(slots)}
  for path in shapes:
    if surgery.kind(path) == 'decomposed':
      raise errors.UserError(f'{surgery.text(path)} is a slot of a part of a matrix, for which the dense run '
                             'has none; nearest: --optimizer fresh')
  for path, shape in shapes.items():
    # Adafactor takes the smaller side of a dense matrix for its rows, and the width D of an expert's.
    if path[-1] == 'v_row' and surgery.kind(path) == 'tiled' and shapes[*path[:-1], 'v_col'] == shape:
      raise errors.UserError(f'{surgery.text(path[:-1])} are slots of a square matrix, whose rows and '
                             'columns cannot be told apart; nearest: --optimizer fresh')
  return copied


def _first_step(steps, cfg):
  """The step the dense runs have done; raises UserError if they differ or leave nothing to train."""
  if len(set(steps)) > 1:
    raise errors.UserError(f'the dense runs have done {", ".join(map(str, steps))} steps; nearest: '
                           '--step zero')
  if steps[0] >= cfg.train.steps:
    needed = steps[0] + cfg.train.steps
    raise errors.UserError(f'the dense run has done {steps[0]} steps and train.steps={cfg.train.steps}: '
                           f'nothing is left to train; nearest: --config.train.steps={needed} or --step zero')
  return steps[0]


def _position(theirs, found, cfg, source):
  """Where the data starts: see the docstring of this file."""
  beginning = pipeline.beginning(cfg, source)
  changed = [field for field in experiment.diff(theirs[0], cfg) if field in ('seed', 'train.batch_size') or (
      field.startswith('data.') and field not in ('data.cache_dir', 'data.eval_split'))]
  same = len(theirs) == 1 and not changed
  position = found[0][2]
  return position if same and position['data'] == beginning['data'] else beginning


def _evaluate(cfg, plan, state, source, show, what):
  show.say(f'evaluating the {what}')
  return evaluate.run(cfg, plan, evaluate.make(plan, cfg.eval.draws), state, source.info(),
                      lambda done, number: show.busy(f'evaluating the {what} {done}/{number}'), source)


def difference(cfg, dense, sparse):
  """Returns the norm of the change of the logits over the norm of the dense logits, on one evaluation batch.

  Logits of what a model rules out, such as an answer in padding, do not count.

  Args:
    dense, sparse: pairs of blueprint and training state.
  """
  (dense_plan, dense_state), (sparse_plan, sparse_state) = dense, sparse
  weights = lambda state: (state['params'], state['router_state'])

  @jax.jit
  def norms(dense_state, sparse_state, batch):
    before, after = (plan.model(*state)(batch, key=jax.random.key(0), train=False)[0]
                     for plan, state in ((dense_plan, dense_state), (sparse_plan, sparse_state)))
    real = (sparse_plan.target.weights(batch)[..., None] > 0) & (before > IMPOSSIBLE)
    return [jnp.sum(jnp.where(real, x, 0) ** 2) for x in (after - before, before)]

  batch = next(iter(pipeline.eval_batches(cfg, jax.process_index(), jax.process_count())))
  placed = check.place(batch, sparse_plan.mesh)
  changed, whole = jax.device_get(norms(weights(dense_state), weights(sparse_state), placed))
  return float((changed / whole) ** 0.5)


def _write(cfg, workdir, plan, state, source, record, options, spent):
  """Writes the new run. It starts with the FLOPs `spent` on the runs, where their steps are kept."""
  flops = float(spent if options['step'] == 'keep' else 0)
  parents = [starts.parent(start['run'], start['step']) for start in record['runs']]
  origin = starts.origin('upcycle', options, parents, record)
  low, high = jax.device_get(state['counts']['tokens']).tolist()
  line = dict(tokens=(high << 32) + low) | record['upcycled']
  with rundir.own(workdir) as path:
    starts.unused(path)                  # nor was it taken meanwhile
    starts.write(path, cfg, state, record['data'], origin, step=record['step'],
                 vocabulary=source.info()['vocab'].digest, flops=flops, line=line)
    records.write(path, cfg, source, check.files(plan))
