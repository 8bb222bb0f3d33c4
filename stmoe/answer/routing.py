"""What one or several checkpoints of a run say of its routers, on its evaluation data: `stmoe routing`.

The same batches are routed as in evaluation: without noise, at evaluation's capacity. Choices are those that
are executed: a choice that found no slot is none. `analysis/routing/diagnostics.py` has the formulas.
"""

from collections.abc import Callable
from collections.abc import Sequence
import copy
import functools
import itertools
import pathlib

import jax
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe import targets
from stmoe.analysis.routing import choices
from stmoe.analysis.routing import diagnostics
from stmoe.answer import interactive
from stmoe.checkpoints import stored
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import hidden
from stmoe.data import batches as pipeline
from stmoe.derive.calibration import watch
from stmoe.hosts import distributed
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import opened

# Of `items.ITEMS`, and what each of them is of; `tokens` divides.
ITEMS = {'chosen_cosines': 'output_similarity', 'probability_margin': 'probability_margin',
         'anisotropy': 'anisotropy'}
DROPPED = (1, 2)                         # first choices that are taken away
GIVEN, LABELS = 'given/', 'labels'        # in batches: what is known of rows, their class
KINDS = 1000                             # most values of one of these that are domains


def diagnose(run: str | pathlib.Path, step: int | None = None, against: Sequence[int] | None = (),
             texts: dict[str, str] | None = None, temperatures: Sequence[float] = (0.1, 10.0),
             batches: int = 8, say: Callable = print, devices=None, overrides: Sequence[str] = ()) -> dict:
  """Returns what the routers of `run` do, as numbers, lists and dicts; NaN is a number without meaning.

  step, tokens  the checkpoint, and how many tokens of evaluation it routed
  layers        name -> dict of numbers, load [E], coactivation [E,E] and its strongest pairs,
                and places [T]: how many experts compute the token there, mean over rows
  universality  how alike the layers use experts of equal numbers
  against       step -> layer -> overlap, change, slot_change, first_agreement
  domains       name -> layer -> allocation_entropy, without, load [E]
  loss, dropped of evaluation; 1, 2 -> loss without so many first choices, minus `loss`; a token then has the
                next k, also where its router's policy or threshold would leave out some
  temperatures  text -> loss with logits divided by the temperature, minus `loss`
  notes         what the routers of this model do not allow, and why

  Args:
    step:         of the checkpoint; None = the newest.
    against:      steps of checkpoints that the choices are compared with; None = all others that are kept.
    texts:        name -> text of a domain. Tasks of a mixture are domains, too. So are the rows of a class,
      and those of which the same is given.
    temperatures: that logits are divided by.
    batches:      of evaluation.
    overrides:    on the run's configuration, such as other data.
  """
  cfg = experiment.override(copy.deepcopy(rundir.opened(run, step)), overrides, whole=False)
  if texts and not any(name.endswith(choices.SEGMENTS) for name in lookup.source(cfg.data).shapes(1)):
    raise errors.UserError(f'--domain {next(iter(texts))}: {run} has {lookup.titled(cfg.data)}, and reads no '
                           'text; nearest: no --domain, its classes are domains already')
  with cfg.unlocked():
    cfg.eval.batches = batches
  with opened.run(cfg, run, say, devices) as (plan, source):
    probe = Probe(cfg, run, plan, source, step, say)
    found = probe.layers()
    others = (at for at in stored.steps(pathlib.Path(run) / 'checkpoints') if at != probe.step)
    compared = others if against is None else against
    found['against'] = {at: probe.against(at) for at in compared}
    found['domains'] = probe.domains(texts or {})
    return found | probe.losses(temperatures) | dict(notes=probe.notes)


class Probe:
  """A checkpoint of a run, its evaluation batches, and what was recorded of them.

  Raises UserError for a model without routers that choose.
  """

  def __init__(self, cfg, run, plan, source, step, say):
    self._cfg, self._run, self._plan, self._source, self._say = cfg, run, plan, source, say
    self._shard = distributed.shard(plan.mesh, cfg.eval.batch_size)
    self.notes: list[str] = []           # each once
    self.step, self._state = self._restore(step)
    self._batches = self._of(most=cfg.eval.batches)
    aux, masks = self._foreseen(names=())
    if not [*choices.recorded(aux, masks)]:
      raise errors.UserError(f'{run} has no sparse layer in a stack whose tokens choose experts')
    if others := choices.elsewhere(aux):
      self.notes.append(f'no {", ".join(others)}: what chooses there are no tokens of the stack, but '
                        'channels or the like')
    self._names = self._possible()
    self._record = functools.partial(_record, plan, names=tuple(self._names))
    self._routes, self._sums, self._real = self._recorded(self._state, self._batches)

  def layers(self) -> dict:
    """Returns dict(step, tokens, layers, universality) of the checkpoint."""
    names, found = list(self._routes), {}
    for name, before in zip(names, [None, *names]):
      routes = self._routes[name]
      found[name] = _of_layer(routes) | self._summed(name)
      found[name]['places'] = diagnostics.by_place(routes, self._real[name]).tolist()
      if before and self._routes[before].num_experts == routes.num_experts and len(
          self._routes[before].experts) == len(routes.experts):
        found[name]['overlap_before'] = diagnostics.overlap(routes, self._routes[before])
    return dict(step=self.step, tokens=max(len(routes.experts) for routes in self._routes.values()),
                layers=found, universality=diagnostics.universality([*self._routes.values()]))

  def against(self, step: int) -> dict[str, dict[str, float]]:
    """Returns dict layer -> how the choices of the same tokens at `step` compare with this checkpoint's."""
    other, _, _ = self._recorded(self._restore(step)[1], self._batches)
    found = {}
    for name, routes in self._routes.items():
      overlap = diagnostics.overlap(other[name], routes)
      found[name] = dict(overlap=overlap, change=1 - overlap,
                         slot_change=diagnostics.slot_change(other[name], routes),
                         first_agreement=diagnostics.first_agreement(other[name], routes))
    return found

  def domains(self, texts: dict[str, str]) -> dict[str, dict]:
    """Returns dict domain -> layer -> dict(allocation_entropy, without, load).

    Domains are tasks, kinds of rows, and `texts`.
    """
    found = {name: self._recorded(self._state, batches)[0] for name, batches in self._parts(texts)}
    found |= self._kinds()
    return {name: {layer: dict(allocation_entropy=diagnostics.allocation_entropy(routes),
                               without=diagnostics.without(routes),
                               load=diagnostics.load(routes).tolist()) for layer, routes in layers.items()}
            for name, layers in found.items()}

  def losses(self, temperatures: Sequence[float]) -> dict:
    """Returns dict(loss, dropped, temperatures): the loss, and by how much changed routers raise it."""
    loss = self._loss(lambda model: model)
    raised = lambda change: self._raised(change, loss)
    dropped = {number: raised(functools.partial(_without, number=number)) for number in DROPPED}
    sharper = {f'{value:g}': raised(functools.partial(_divided, value=value)) for value in temperatures}
    present = lambda values: {key: value for key, value in values.items() if value is not None}
    return dict(loss=loss, dropped=present(dropped), temperatures=present(sharper))

  def _restore(self, step):
    vocabulary = self._source.info()['vocab']
    at, state, _, _ = opened.restore(self._plan, self._run, vocabulary, self._say, step)
    self._say(f'routing with the checkpoint of step {at:,}')
    return at, state

  def _of(self, **chosen):
    """The batches of evaluation, on this process."""
    every = pipeline.eval_batches(self._cfg, *self._shard, self._source, **chosen)
    return list(itertools.islice(every, self._cfg.eval.batches or None))

  def _foreseen(self, names):
    """What `_record` returns of the first batch, as shapes: nothing is compiled."""
    return jax.eval_shape(functools.partial(_record, self._plan, names=names), self._state['params'],
                          self._state['router_state'], check.place(self._batches[0], self._plan.mesh))

  def _possible(self):
    """Those of ITEMS that every router allows; notes say why the others are left out."""
    allowed = []
    for name in ITEMS:
      try:
        self._foreseen(names=(name,))
        allowed.append(name)
      except errors.UserError as error:
        self.notes.append(f'no {ITEMS[name]}: {error}')
    return [*allowed, 'tokens'] if allowed else []

  def _recorded(self, state, batches):
    """(dict layer -> Routes, dict layer -> dict item -> f64[...], dict layer -> bool[B,T] real tokens).

    That is what the model of `state` does with `batches`, one after the other.
    """
    compute = jax.jit(self._record, out_shardings=distributed.everywhere(self._plan.mesh))
    parts: dict[str, list] = {}
    sums: dict[str, dict] = {}
    masks: dict[str, list] = {}
    for batch in batches:
      placed = check.place(batch, self._plan.mesh)
      aux, real_of = jax.device_get(compute(state['params'], state['router_state'], placed))
      for name, edges, real, num_experts in choices.recorded(aux, real_of):
        masks.setdefault(name, []).append(real)
        parts.setdefault(name, []).append(diagnostics.routes(**edges, mask=real, num_experts=num_experts))
      for name, report in aux.items():
        of_batch = {item: np.float64(report.records[item]).sum(0) for item in self._names
                    if item in report.records}
        sums[name] = {item: value + sums.get(name, {}).get(item, 0) for item, value in of_batch.items()}
    return ({name: diagnostics.joined(found) for name, found in parts.items()}, sums,
            {name: np.concatenate(found) for name, found in masks.items()})

  def _summed(self, name):
    """dict of the ITEMS of a layer, divided."""
    sums, found = self._sums.get(name, {}), {}
    if 'chosen_cosines' in sums:
      total, count = sums['chosen_cosines']
      found['output_similarity'] = float(total / count) if count else np.nan
    for item in ('probability_margin', 'anisotropy'):
      if item in sums:
        found[item] = float(sums[item] / max(sums['tokens'], 1))
    return found

  def _parts(self, texts):
    """Yields (name, batches) of the tasks of a mixture, and of `texts`."""
    if len(getattr(self._source, 'keys', ())) > 1:
      for task in self._source.keys:
        yield task, self._of(most=self._cfg.eval.batches, keys=[task])
    for name, text in texts.items():
      yield name, [interactive.batch(self._cfg, self._source.info()['vocab'], text)]

  def _kinds(self):
    """dict 'NAME=value' -> dict layer -> Routes of the rows of this class, or that have this value given."""
    found: dict[str, dict] = {}
    for key in [key for key, a in self._batches[0].items() if (key.startswith(GIVEN) or key == LABELS)
                and a.dtype.kind in 'iub' and a.size == len(a)]:
      rows = np.concatenate([batch[key].reshape(-1, 1) for batch in self._batches])    # [B, 1]
      kinds = self._most(key.removeprefix(GIVEN), rows)
      for layer, routes in self._routes.items():
        real = self._real[layer]
        values = np.broadcast_to(rows, real.shape)[real]             # [n]
        for value in np.intersect1d(kinds, values):
          found.setdefault(f'{key.removeprefix(GIVEN)}={value}', {})[layer] = routes.of(values == value)
    return found

  def _most(self, name, rows):
    """The values of `rows` [B,1], or the KINDS most frequent of them, which a note says."""
    values, counts = np.unique(rows, return_counts=True)
    if len(values) > KINDS:
      self.notes.append(f'{name} has {len(values):,} values, of which the {KINDS:,} most frequent are '
                        'domains')
    return values[np.argsort(-counts, kind='stable')[:KINDS]]

  def _loss(self, change):
    sums = evaluate.make(self._plan, change=change)
    values = evaluate.run(self._cfg, self._plan, sums, self._state, self._source.info(), opened=self._source)
    return float(values['eval/loss'])

  def _raised(self, change, loss):
    """By how much `change` of the model raises the loss, or None if its routers do not allow it."""
    try:
      return self._loss(change) - loss
    except errors.UserError as error:
      self.notes += [str(error)] if str(error) not in self.notes else []
      return None


def _record(plan, params, routers, batch, names):
  """(dict layer -> Aux with records, dict stack -> bool[B,T] real tokens) as at evaluation."""
  model = plan.model(params, routers)
  model = watch.watched(model, names) if names else model
  first = [block for stack in model.stacks() for block in stack.blocks()[:1]]
  model, batch = choices.trace(modules.showing(model, first)), targets.posed(plan.target, batch)
  forward = lambda batch: hidden.apart(model(batch, train=False)[1])
  _, states = jax.eval_shape(forward, batch)
  shapes = {choices.stack_of(name): state.mask.shape for name, state in states.items()}
  aux, states = forward(batch | choices.numbered(shapes))
  return aux, {choices.stack_of(name): state.mask for name, state in states.items()}


def _of_layer(routes):
  pairs = diagnostics.coactivation(routes)
  measures = dict(
      without=diagnostics.without, allocation_entropy=diagnostics.allocation_entropy,
      usage_perplexity=diagnostics.usage_perplexity, dead=diagnostics.dead,
      weight_entropy=diagnostics.weight_entropy, margin=diagnostics.margin)
  return {name: measure(routes) for name, measure in measures.items()} | dict(
      choices=float((routes.experts >= 0).sum(1).mean()), load=diagnostics.load(routes).tolist(),
      coactivation=pairs.tolist(), strongest=diagnostics.strongest(pairs))


def _without(model, number):
  """The model whose tokens go to their next choices instead of the first `number`."""
  def changed(d_model, inner, rngs):
    router = inner(d_model, rngs=rngs)
    k = contract.offered(router, 'k')
    if k is None:
      raise errors.UserError(f'{checked.file(router)} does not say how many experts a token has: none '
                             'of its choices is taken away')
    ranks = tuple(range(number, number + k))
    return lookup.constructor('router', 'ranks')(d_model, inner=inner, ranks=ranks, rngs=rngs)
  return modules.wrapped(model, changed)


def _divided(model, value):
  """The model whose router logits are divided by `value`."""
  recipe = functools.partial(lookup.constructor('router', 'temperature'), temperature=value)
  return modules.wrapped(model, recipe)
