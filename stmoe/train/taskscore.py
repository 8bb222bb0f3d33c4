"""Tasks judged by their metrics: labels ranked, texts decoded, spans of a text found; boolq/accuracy@rank.

Labels are ranked at evaluation capacity; with a capacity, what a row gets depends on the rows beside it. So
the capacity is recorded beside the scores. Texts are decoded without a capacity (generate.py). The fields of
section `eval` that are read here:
  methods:  'rank' by log-likelihood, 'decode', both, or none for no such evaluation; 'span' of questions.
  examples: the largest number of examples of each task, from the first on; 0 = all.
Section `decode` names the strategy, a module of stmoe/decode, and its fields.
"""

import collections
import itertools
import numbers
import pathlib

import jax
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe import modules
from stmoe import plugins
from stmoe.core import checked
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.decode import generate
from stmoe.decode import rank
from stmoe.hosts import distributed
from stmoe.train import check
from stmoe.train import state as states


def set_task(cfg, names, run=None):
  """Changes the config of the run in directory `run` so that it is judged on tasks `names` in both ways."""
  paired = pipeline.objective(cfg).paired
  with cfg.unlocked(), cfg.ignore_type():
    run_vocabulary = pipeline.vocabulary(cfg, found=records.read(run))
    cfg.data.vocab = str(getattr(run_vocabulary, 'path', cfg.data.vocab))
    objective = cfg.data.objective if paired else 'seq2seq' if 'encoder' in cfg.model else 'prompted'
    mixture = tuple(names) if len(names) > 1 else ()
    cfg.data.update(task=names[0], mixture=mixture, files=(), jsonl=(), metrics=(), mixture_cap=1,
                    objective=objective, join=False)
    cfg.eval.methods = 'rank', 'decode'


class Scorer:
  """What judges a model of a configuration; compiled when first used.

  opened: the data, from `pipeline.source`; None = the data of `cfg`.
  """

  def __init__(self, cfg, plan, opened=None):
    self.cfg, self.plan = cfg, plan
    self.methods = tuple(cfg.eval.methods)
    self.tasks, self._rower = pipeline.judged(cfg, opened) if self.methods else ({}, None)
    for task in self.tasks.values():
      for metric in task.metrics:
        lookup.module('metric', metric)
      self._check(task.examples)
    likely = lambda params, routers, batch, key: rank.scores(plan.model(params, routers), batch, key)
    self._rank = jax.jit(likely, out_shardings=distributed.everywhere(plan.mesh))
    self._write = _writer(cfg, plan, self._rower) if 'decode' in self.methods else None
    logits = lambda params, routers, batch, key: plan.model(params, routers)(batch, key=key)[0]
    self._logits = jax.jit(logits, out_shardings=distributed.everywhere(plan.mesh))

  def _check(self, examples):
    possible = ('span',) if 'windows' in examples[0] else ('rank', 'decode')
    for method in self.methods:
      if method not in possible:
        raise errors.UserError(f'eval.methods: {method!r} does not judge {lookup.titled(self.cfg.data)}; '
                               f'nearest: {", ".join(possible)}')

  def examples(self, name):
    """Returns the list of examples on which task `name` is judged."""
    return self.tasks[name].examples[:self.cfg.eval.examples or None]

  def names(self):
    """Returns the names of all scores that `run` gives, found by scoring the targets themselves."""
    values = {}
    for method, name, examples in self._jobs():
      scores = score(self.tasks[name].metrics, examples[:1], [examples[0]['targets']])
      values |= {f'{name}/{metric}@{method}': value for metric, value in scores.items()}
    return [*values, *averages(values)]

  def _jobs(self):
    """[(method, task name, examples)]: a task without choices is not ranked."""
    all_jobs = [(m, name, self.examples(name)) for m, name in itertools.product(self.methods, self.tasks)]
    return [(m, name, examples) for m, name, examples in all_jobs
            if m != 'rank' or all(example['choices'] for example in examples)]

  def run(self, state, tell=lambda done, number: None):
    """Returns dict 'task/metric@method' -> float; of several tasks also their average.

    A task without choices is not ranked. `tell` is called with the numbers of batches done and to do.
    """
    jobs = self._jobs()
    size = self.cfg.eval.batch_size
    number = sum(-(-_rows(method, examples) // size) for method, _, examples in jobs)
    batch_number, values = itertools.count(1), {}
    for method, name, examples in jobs:
      predict = dict(rank=self._ranked, decode=self._written, span=self._found)[method]
      predictions = predict(state, examples, lambda: tell(next(batch_number), number))
      values |= {f'{name}/{metric}@{method}': value for metric, value in
                 score(self.tasks[name].metrics, examples, predictions).items()}
    return values | averages(values)

  def likelihoods(self, state, pairs, tell=lambda: None):
    """Returns the list of log P(target | inputs) of (inputs, targets) `pairs`; `tell`s of every batch."""
    return list(self._each_batch(self._rank, state, pairs, tell))

  def texts(self, state, inputs, tell=lambda: None):
    """Returns the list of texts that the model writes for a list of `inputs`."""
    ids = self._each_batch(self._write, state, [(text, '') for text in inputs], tell)
    return [generate.text(self.cfg, self._rower.vocabulary, row) for row in ids]

  def _ranked(self, state, examples, tell):
    """The likeliest choice of each example."""
    pairs = [(example['inputs'], choice) for example in examples for choice in example['choices']]
    likely = iter(self.likelihoods(state, pairs, tell))
    return [max([(next(likely), -i, choice) for i, choice in enumerate(example['choices'])])[2]
            for example in examples]

  def _written(self, state, examples, tell):
    """The text that the model writes for each example."""
    return self.texts(state, [example['inputs'] for example in examples], tell)

  def _found(self, state, examples, tell):
    """The best span of each example, over the windows of its text."""
    windows = [window for example in examples for window in example['windows']]
    logits = iter(self._each_batch(self._logits, state, windows, tell))
    return [self._rower.answer(example['windows'], [next(logits) for _ in example['windows']])
            for example in examples]

  def _each_batch(self, compute, state, pairs, tell):
    """Rows of what `compute` gives for the pairs, batch by batch."""
    size, key = self.cfg.eval.batch_size, states.fold(self.cfg.seed, 'tasks')
    params = self.plan.evaluated(state)
    part, parts = distributed.shard(self.plan.mesh, size)
    for number, at in enumerate(range(0, len(pairs), size)):
      mine = pairs[at:at + size][part * size // parts:(part + 1) * size // parts]
      batch = check.place(self._rower.batch(mine, size // parts), self.plan.mesh)
      outputs = compute(params, state['router_state'], batch, jax.random.fold_in(key, number))
      tell()
      yield from np.asarray(jax.device_get(outputs))[:len(pairs) - at]


def _writer(cfg, plan, rower):
  """The jitted function of (params, router_state, batch, key) that decodes."""
  if 'decode' not in cfg:
    raise errors.UserError(f"eval.methods: 'decode' is for models that write texts; {cfg.model.name} writes "
                           'none; nearest: rank')
  decode = generate.ending(cfg.decode, cfg, rower.vocabulary)
  return generate.make(plan, decode, cfg.data.get('targets_length') or cfg.data.length // 2)


def _rows(method, examples):
  if method == 'decode':
    return len(examples)
  return sum(len(example['choices' if method == 'rank' else 'windows']) for example in examples)


def score(metrics, examples, predictions):
  """Returns dict 'metric' -> float of what `metrics`, names of modules, measure.

  Raises UserError for examples of a task that a metric cannot judge, such as labels without `choices`.
  """
  values = {}
  for metric in metrics:
    judge = lookup.module('metric', metric).score
    try:
      given = judge(examples, predictions)
    except checked.MISTAKES as error:
      raise errors.UserError(plugins.blamed(error) or f'metric {metric} cannot judge these examples: '
                             f'{errors.in_words(error)}; nearest: accuracy') from error
    fits = isinstance(given, dict) and all(isinstance(value, numbers.Real) for value in given.values())
    values |= checked.returned(judge, given, fits, 'dict name -> number')
  return values


def averages(values):
  """Returns dict 'average@method' over tasks with that method, a task's metrics averaged first (SuperGLUE).

  Where all these tasks have the same metrics, several of them, each has an average, too.

  >>> averages({'a/f1@rank': 10.0, 'a/accuracy@rank': 30.0, 'b/accuracy@rank': 40.0})
  {'average@rank': 30.0}
  >>> averages({'a/em@span': 10.0, 'a/f1@span': 30.0, 'b/em@span': 20.0, 'b/f1@span': 50.0})
  {'average@span': 27.5, 'average/em@span': 15.0, 'average/f1@span': 40.0}
  """
  by_method: dict[str, dict] = {}
  for name, value in values.items():
    task, _, score_name = name.partition('/')
    metric, _, method = score_name.partition('@')
    by_method.setdefault(method, {}).setdefault(task, {})[metric] = value
  mean, found = (lambda numbers: sum(numbers) / len(numbers)), {}
  for method, tasks in by_method.items():
    of_tasks = list(tasks.values())
    if len(of_tasks) < 2:
      continue
    found[f'average@{method}'] = mean([mean(each.values()) for each in of_tasks])
    metrics = [*of_tasks[0]]
    if len(metrics) > 1 and all(each.keys() == {*metrics} for each in of_tasks):
      found |= {f'average/{metric}@{method}': mean([each[metric] for each in of_tasks]) for metric in metrics}
  return found


def baselines(examples, metrics):
  """Returns dict 'metric' -> float of the best trivial system: one label everywhere, or the `baseline` texts.

  A label is tried where all examples have the same few choices. Each metric takes its best label.
  """
  labels = {tuple(example['choices']) for example in examples}
  if len(labels) == 1 and (choices := next(iter(labels))):
    tried = [[choice] * len(examples) for choice in choices]
  else:
    counts = collections.Counter(example['targets'] for example in examples)
    often = max(sorted(counts), key=counts.__getitem__)
    tried = [[example.get('baseline', often) for example in examples]]
  scores = [score(metrics, examples, predictions) for predictions in tried]
  return {metric: max(of_system[metric] for of_system in scores) for metric in scores[0]}


def capacities(plan):
  """Returns dict path of a router -> its capacity factor in evaluation; None = nothing is dropped."""
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  factors = {}
  for path, layer in modules.offering(model, 'router'):
    factor = contract.offered(layer.router, 'capacity_factor')
    factors['/'.join(map(str, (*path, 'router')))] = factor and factor[1]
  return factors


def write(path, found, name='results.json'):
  """Writes a record into the run directory `path`."""
  files.write_json(pathlib.Path(path) / name, files.plain(found))


def describe(values):
  """Returns scores as one line."""
  return 'scores ' + ', '.join(f'{name} {value:.2f}' for name, value in values.items())


def record(scorer, step, values):
  """Returns what results.json holds: scores beside the scores of trivial systems, and how they were made."""
  trivial = {f'{name}/{metric}': value for name, task in scorer.tasks.items()
             for metric, value in baselines(scorer.examples(name), task.metrics).items()}
  return dict(step=step, scores=values, baselines=trivial,
              examples={name: len(scorer.examples(name)) for name in scorer.tasks},
              eval_capacity_factor=dict(rank=capacities(scorer.plan), decode=None),
              decode=dict(scorer.cfg.decode) if 'decode' in scorer.cfg else None,
              batch_size=scorer.cfg.eval.batch_size)


def table(found):
  """Yields the lines of a record as a table: metrics down, methods and the trivial system across."""
  methods = sorted({name.partition('@')[2] for name in found['scores']}, reverse=True)
  names = list(dict.fromkeys(name.partition('@')[0] for name in found['scores']))
  yield f'{"task/metric":28} {"examples":>8}' + ''.join(f' {method:>9}' for method in methods) + '   trivial'
  for name in names:
    count = found['examples'].get(name.partition('/')[0], '')
    cells = [found['scores'].get(f'{name}@{method}') for method in methods] + [found['baselines'].get(name)]
    yield f'{name:28} {count:>8}' + ''.join(f' {"-" if c is None else format(c, ".2f"):>9}' for c in cells)
