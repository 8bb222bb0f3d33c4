"""Records the routing of a run: of batches of its data, or of the texts that it generates.

`data/recording.py` has the form of the file. What is recorded is what was executed: a choice that found no
slot is none, and stays none where the recording is replayed.
"""

from collections.abc import Callable
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import targets
from stmoe.analysis.routing import choices
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.data import recording
from stmoe.data.text import pack
from stmoe.data.text import tasks
from stmoe.decode import generate
from stmoe.hosts import distributed
from stmoe.routers.wrappers import replay
from stmoe.train import check
from stmoe.train import opened

TEXT = ('num_bytes', 'num_tokens', 'num_documents', 'bytes_per_token', 'piece_bytes')


class Record(replay.Placed):
  """The router `inner`, whose choices come back as Aux.records['routes'].

  That is a dict: `experts` i32[G,S,n], -1 for none; `place` i32[G,S], how many routers were called before;
  `number` i32[G,S], which token of the batch it is, from what is given as `contract.TOKEN_NUMBER`.
  """

  def __call__(self, x, ctx, carry):
    """Returns Routed for x [G,S,D]."""
    routed = checked.route(self.inner, x, ctx, carry)
    a, place = routed.assignment, self.place(carry)
    if not isinstance(a, assignment.Assignment) or a.choices is None:
      raise errors.UserError(f'{checked.file(self.inner)} lists no choices token by token')
    experts = jnp.where(assignment.reaching(a), a.expert, -1)        # [G, n*S]
    experts = experts.reshape(len(experts), a.choices, -1).swapaxes(1, 2)          # [G, S, n]
    number = ctx.known(contract.TOKEN_NUMBER, 'a record of routing')
    routes = dict(experts=experts, place=place[..., 0], number=number)
    aux = routed.aux.recorded(routes=routes)
    return routed.replace(aux=aux, carry=routed.carry | {replay.PLACE: place + 1})


class Recorder:
  """Collects batches of texts and the experts of their tokens; `write` makes the file.

  Args:
    cfg:   configuration of the run directory `run`; plan: the Blueprint of its model.
    state: the numbers of the checkpoint at `step`.
    say:   called with lines of text.
    alone: every token is routed by itself, as decoding does; else as evaluation does.
  """

  def __init__(self, cfg, run, plan, state, step, vocabulary, say, alone=False):
    self._cfg, self._run, self._plan, self._state = cfg, run, plan, state
    self._step, self._vocabulary, self._say = step, vocabulary, say
    self._batches: list[dict] = []
    self._routes: list[dict] = []
    self._dropped: list[float] = []
    self._compute = jax.jit(functools.partial(_routes, plan, alone),
                            out_shardings=distributed.everywhere(plan.mesh))

  def add(self, batch: dict[str, np.ndarray]) -> None:
    """Routes a batch, dict name -> i32[B,T], and keeps what became of it."""
    shapes = {name.partition('_')[0]: a.shape for name, a in batch.items() if name.endswith('_input_tokens')}
    placed = check.place(batch | choices.numbered(shapes), self._plan.mesh)
    found, drops = jax.device_get(self._compute(self._state['params'], self._state['router_state'], placed))
    if not found:
      raise errors.UserError(f'{self._run} has no router whose choices could be recorded')
    self._batches.append(batch)
    self._routes.append({side: _of_stack(named, shapes[side]) for side, named in _by_stack(found).items()})
    self._dropped += drops

  def write(self, path: str | pathlib.Path, text: dict) -> None:
    """Writes the recording of all batches, padded to the longest rows; `text`: see `recording.About`."""
    batch, routes = _joined(self._batches, 0), _joined(self._routes, -1)
    model = self._plan.model(self._plan.shapes['params'], self._plan.shapes['router_state'])
    about = recording.About(
        run=str(self._run), step=self._step, objective=_objective(self._cfg), text=text,
        vocabulary=self._vocabulary.digest, choices=next(iter(routes.values())).shape[-1],
        routers=recording.routers(model, check.forward(self._cfg, self._plan)))
    recording.write(path, about, batch, routes)
    if share := float(np.mean(self._dropped or [0.0])):
      self._say(f'note: {share:.1%} of the choices found no slot and are recorded as none; where weights are '
                'normalised, those of the other choices of a token grow; a recording without drops needs '
                'routers without capacity: --config.blocks.m.router.capacity_factor=None,None')


def of_run(run: str | pathlib.Path, path: str | pathlib.Path, cfg, *, step: int | None = None,
           best: bool = False, batches: int = 0, split: str = 'validation', say: Callable = print,
           devices=None) -> int:
  """Writes the recording `path` of what a checkpoint of `run` does with its own data; returns its step.

  Training batches are the first ones of the run, packed as there. Nothing is random: no noise, no dropout,
  the capacity of evaluation.

  Args:
    cfg:     the run's configuration; fields that act in evaluation may be others.
    batches: how many; 0 = all of evaluation's split.
    split:   validation or train.
  """
  if split not in tasks.SPLITS:
    raise errors.UserError(f'--split {split}{errors.nearest(split, tasks.SPLITS)} (there are: '
                           f'{", ".join(tasks.SPLITS)})')
  if split == 'train' and not batches:
    raise errors.UserError('--split train has no last batch; say how many: --batches N')
  pipeline.objective(cfg)                # of texts
  with opened.run(cfg, run, say, devices) as (plan, source):
    facts = source.info()
    at, state, _, _ = opened.restore(plan, run, facts['vocab'], say, step, 'best' if best else 'checkpoints')
    recorder = Recorder(cfg, run, plan, state, at, facts['vocab'], say)
    say(f'recording the routing of the checkpoint of step {at:,}')
    for batch in _data(cfg, plan, source, split, batches):
      recorder.add(batch)
    whole = hasattr(source, 'num_bytes') and getattr(lookup.source(cfg.data).rule, 'whole', False)
    recorder.write(path, {name: facts[name] for name in TEXT if name in facts} if whole else {})
  return at


def _data(cfg, plan, source, split, number):
  """Yields the first batches of a split, `number` of them; 0 = all."""
  if split == 'train':
    data = pipeline.train_iterator(cfg, *distributed.shard(plan.mesh, cfg.train.batch_size), source)
    yield from itertools.islice(data, number)
    data.close()
  else:
    shard = distributed.shard(plan.mesh, cfg.eval.batch_size)
    yield from itertools.islice(pipeline.eval_batches(cfg, *shard, source, most=number), number or None)


class Texts:
  """Records generated texts: called with what `infer.texts` has of every batch.

  Their routing is that of one pass over prompt and text in which every token is routed by itself. Decoding
  with a cache computes the same, but for rounding.

  Args:
    path: of the recording, which `close` writes.
  """

  def __init__(self, path: str | pathlib.Path, cfg, run: str | pathlib.Path, say: Callable):
    self._path, self._cfg, self._run, self._say = path, cfg, run, say
    self._recorder: Recorder | None = None

  def __call__(self, plan, state, step: int, vocabulary, prompts: list[list[int]], ids: np.ndarray,
               real: int) -> None:
    """Records a batch of prompts, lists of ids, and their texts i32[B,length]; only `real` rows count."""
    if self._recorder is None:
      self._recorder = Recorder(self._cfg, self._run, plan, state, step, vocabulary, self._say, alone=True)
    self._recorder.add(rows(self._cfg, vocabulary, prompts, ids, real))

  def close(self) -> None:
    """Writes the recording of all batches."""
    if self._recorder is not None:
      self._recorder.write(self._path, {})


def rows(cfg, vocabulary, prompts: list[list[int]], ids: np.ndarray, real: int) -> dict[str, np.ndarray]:
  """Returns the batch of prompts and their generated texts, whose tokens alone have a loss.

  Args:
    prompts: lists of ids as `infer.tokens` makes them. ids: i32[B,length] up to and with an end, then 0.
    real:    rows that count; later ones are empty.
  """
  rule, starts = pipeline.objective(cfg), [cfg.model.get('start_id', 0)] * len(prompts)
  examples = []
  for prompt, generated in zip(prompts, ids):
    last = np.flatnonzero(np.isin(generated, generate.ends(cfg, vocabulary)))
    text = generated[:last[0] + 1] if len(last) else generated
    if 'encoder' in rule.sides:
      examples.append(dict(encoder=np.asarray(prompt), decoder=text))
    else:                                # a row's inputs begin with the first id of the prompt
      starts[len(examples)] = prompt[0]
      given = np.asarray(prompt[1:], np.int32)
      examples.append(dict(decoder=np.concatenate([given, text]), prefix=len(given)))
  longest = lambda side: max(len(example[side]) for example in examples)
  lengths = {side: max(longest(side), cfg.data[field]) for side, field in rule.sides.items()}
  batch = pack.empty(lengths, len(examples), rule.prefix)
  for at, example in enumerate(examples[:real]):
    pack.fill(batch, at, [example], start=starts[at])
  return batch


def _routes(plan, alone, params, routers, batch):
  """(dict name -> dict of `Record`, dropped shares) of a batch."""
  model = modules.wrapped(plan.model(params, routers), Record)
  posed = targets.posed(plan.target, batch)
  _, aux = model(posed, train=False, **dict(alone=True) if alone else {})      # not all models decode
  return ({name: a.records['routes'] for name, a in aux.items() if 'routes' in a.records},
          [a.metrics['drop_frac'] for a in aux.values() if 'drop_frac' in a.metrics])


def _by_stack(found):
  """dict stack -> dict name -> what was recorded."""
  stacks: dict[str, dict] = {}
  for name, routes in found.items():
    stacks.setdefault(name.partition('_')[0], {})[name] = routes
  return stacks


def _of_stack(named, shape):
  """i32[B,T,L,n] of the routers of a stack, dict name -> what was recorded, for a batch of `shape` B, T."""
  in_order = {}
  for name, routes in named.items():
    places, number = np.unique(routes['place']), routes['number'].ravel()
    if len(places) > 1 or not np.array_equal(np.sort(number), np.arange(np.prod(shape))):
      raise errors.UserError(f'{name}: some tokens do not pass its router, as in Mixture-of-Depths; their '
                             'routing is not recorded')
    experts = np.empty((number.size, routes['experts'].shape[-1]), np.int32)
    experts[number] = routes['experts'].reshape(experts.shape)
    in_order[int(places[0])] = name, experts
  sizes = {name: experts.shape[1] for name, experts in in_order.values()}
  if len({*sizes.values()}) > 1:
    raise errors.UserError(f'routers of different numbers of choices are not recorded together: {sizes}')
  return np.stack([in_order[place][1].reshape(*shape, -1) for place in sorted(in_order)], axis=2)


def _joined(parts, fill):
  """dict name -> [N,T,...] of dicts of arrays [B,T,...], all padded with `fill` to the longest T."""
  def one(name):
    longest = max(part[name].shape[1] for part in parts)
    padded = [np.pad(part[name], [(0, 0), (0, longest - part[name].shape[1])] + [(0, 0)] * (
        part[name].ndim - 2), constant_values=fill) for part in parts]
    return np.concatenate(padded)
  return {name: one(name) for name in parts[0]}


def _objective(cfg):
  """dict of data.objective and its fields."""
  name = cfg.data.objective
  return dict(objective=name) | {field: cfg.data[field] for field in lookup.fields('objective', name)
                                 if field in cfg.data}
