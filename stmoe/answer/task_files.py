"""Scores of a run on task files of BIG-bench, beside chance, their spread and the scores of trivial systems.

A system answers prompts in two ways:
  rank(texts, choices)  -> N arrays f64[C] of log P(choice | text), for N lists of C choices
  write(texts)          -> N texts
"""

import collections
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
import pathlib
import types

import jax
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.answer import harness
from stmoe.data import batches as pipeline
from stmoe.data.text import big_bench as task_files
from stmoe.metrics import big_bench as metrics
from stmoe.runs import records
from stmoe.train import opened
from stmoe.train import taskscore

LENGTH = 64
NEEDS_NETWORK = ('bleurt', 'bleurt_diff')   # metrics that are trained networks: left out, and it is said
TRIVIAL = {                              # systems that know nothing: choices -> the place of their answer
    'first': lambda choices: 0,
    'last': lambda choices: len(choices) - 1,
    'shortest': lambda choices: min(range(len(choices)), key=lambda i: len(choices[i])),
    'longest': lambda choices: max(range(len(choices)), key=lambda i: len(choices[i])),
}


class Continuing:
  """A system that is a run of a language model, which goes on with a text by at most `length` tokens."""

  def __init__(self, bridge: harness.Harness, length: int):
    self._bridge, self._length = bridge, length

  def rank(self, texts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Returns N arrays f64[C], not divided by any length."""
    scores = self._bridge.loglikelihood([_request(*pair) for pair in _pairs(texts, choices)])
    return _apart([score for score, _ in scores], choices)

  def write(self, texts: Sequence[str]) -> list[str]:
    """Returns N greedy texts."""
    most = dict(max_gen_toks=self._length)
    return self._bridge.generate_until([_request(text, most) for text in texts])

  @property
  def num_cut(self) -> int:
    """How many rows were longer than those of training, and lost their beginning."""
    return self._bridge.num_cut


class Paired:
  """A system that is a run of pairs of texts, with an encoder or without; an answer ends with EOS."""

  num_cut = None                         # not known: the objective of the pairs cuts them

  def __init__(self, scorer: taskscore.Scorer, state: dict):
    self._scorer, self._state = scorer, state

  def rank(self, texts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Returns N arrays f64[C], not divided by any length."""
    return _apart(self._scorer.likelihoods(self._state, _pairs(texts, choices)), choices)

  def write(self, texts: Sequence[str]) -> list[str]:
    """Returns N texts, by the strategy of section `decode`."""
    return self._scorer.texts(self._state, texts)


def _request(*args):
  return types.SimpleNamespace(args=args)


def _pairs(texts, choices):
  return [(text, choice) for text, each in zip(texts, choices) for choice in each]


def _apart(scores, choices):
  """The scores of all choices as an array for each list of choices."""
  ends = np.cumsum([len(each) for each in choices])
  return np.split(np.asarray(scores, np.float64), ends[:-1])


@dataclasses.dataclass
class Result:
  """The scores of a task.

  scores:     dict metric -> float.
  spread:     dict metric -> its standard error over examples, None of a score that is no mean over examples.
  preferred:  the metric that counts.
  low, high:  its scores that become 0 and 100. Of choices `low` is chance, also of `metrics.PER_BYTE`.
  low_spread: standard deviation of the grade of a system that does not read the questions, see
    `metrics.blind_spread`; of subtasks as if an order was drawn for each; 0 without choices.
  shortest:   (grade, standard deviation) of the choices of fewest bytes, equal ones drawn: the chance of a
    sum over tokens. None without choices.
  examples:   how many.
  trivial:    dict name of a system that knows nothing -> its preferred score.
  bins:       of `metrics.calibration`; [] without choices.
  """
  scores: dict
  spread: dict
  preferred: str
  low: float
  high: float
  low_spread: float
  shortest: tuple[float, float] | None
  examples: int
  trivial: dict
  bins: list

  def shown(self) -> list[str]:
    """Returns the preferred metric, and beside a grade the grade per byte."""
    return [self.preferred, *[metrics.PER_BYTE] * (self.preferred == metrics.GRADE)]

  def normalized(self) -> tuple[float, float | None]:
    """Returns (the preferred score between low = 0 and high = 100, its standard error or None)."""
    spread = self.spread[self.preferred]
    return (metrics.normalized(self.scores[self.preferred], self.low, self.high),
            None if spread is None else 100 * spread / (self.high - self.low))


def check(tasks: Sequence[task_files.Task], shots: Sequence[int], say: Callable, most: int = 0) -> None:
  """Raises UserError for tasks that cannot be scored.

  Such are a metric that nothing computes, too few examples for that many `shots`, and choices that are all
  right: chance is the best score, and the normalised score would be divided by 0.

  shots, most: of `task_files.prompts`; say: called with a line for every metric that is left out.
  """
  known = [*metrics.RANKED, *metrics.WRITTEN, *metrics.LIKELY]
  for part in [part for task in tasks for part in task.parts()]:
    for name in part.metrics:
      if name in NEEDS_NETWORK and name != part.preferred:
        say(f'note: {part.file}: {name} is left out, it is a trained network')
      elif name not in known:
        raise errors.UserError(f"{part.file}: key 'metrics': {name!r} is not computed here"
                               f'{errors.nearest(name, known)} (there are: {", ".join(known)})')
    for example in part.examples if {*part.metrics} & {*metrics.RANKED} else ():
      if not example.choices:
        raise errors.UserError(f"{part.file}: examples[{example.number}]: key 'target_scores' is missing; a "
                               'metric is of choices')
    asked = [example for _, example in task_files.prompts(part, max(shots), most)]
    if part.preferred == metrics.GRADE:
      chance = np.mean([np.mean([*example.choices.values()]) for example in asked])
      if chance >= 1:
        raise errors.UserError(f"{part.file}: key 'target_scores': choices have {chance:g} on average, and 1 "
                               'is the best score; nearest: 0 for choices that are wrong')


def judge(task: task_files.Task, system, shots: int = 0, most: int = 0) -> dict[str, Result]:
  """Returns dict name -> Result of a system on a task; of its subtasks as 'TASK/SUBTASK', too.

  shots, most: of `task_files.prompts`.
  """
  results = {part.name: _judge(part, system, task_files.prompts(part, shots, most)) for part in task.parts()}
  if not task.subtasks:
    return results
  return {task.name: _together([*results.values()])} | {
      f'{task.name}/{name}': result for name, result in results.items()}


def _judge(task, system, found):
  texts, examples = [text for text, _ in found], [example for _, example in found]
  low, high = metrics.limits(task.preferred)
  values, low_spread, shortest, bins = {}, 0.0, None, []
  if all(example.choices for example in examples):
    ranked = _ranked(task, system, texts, examples)
    values |= _values(metrics.RANKED, [*task.metrics, *metrics.CHOICES], ranked)
    bins = metrics.calibration(ranked)
    if task.preferred == metrics.GRADE:
      (low, low_spread), shortest = ranked.chance(), ranked.shortest()
  if {*task.metrics} & {*metrics.WRITTEN}:
    answers = [task_files.written(task, text) for text in system.write(texts)]
    values |= _values(metrics.WRITTEN, task.metrics, _references(examples), answers)
  if {*task.metrics} & {*metrics.LIKELY}:
    log_probs = system.rank(texts, [[*example.targets] for example in examples])
    values |= _values(metrics.LIKELY, task.metrics, _references(examples), log_probs)
  each = lambda number: {name: number(value) for name, value in values.items()}
  return Result(each(lambda value: float(np.mean(value))), each(_error), task.preferred, low, high,
                low_spread, shortest, len(examples), trivial(task, examples), bins)


def _values(table, names, *read):
  return {name: table[name](*read) for name in dict.fromkeys(names) if name in table}


def _ranked(task, system, texts, examples):
  choices = [[*example.choices] for example in examples]
  return metrics.Ranked.of(system.rank(texts, choices), [[*e.choices.values()] for e in examples], choices,
                           task.form['absolute_normalization'])


def _references(examples):
  return [dict(references=[*example.targets]) for example in examples]


def trivial(task: task_files.Task, examples: Sequence[task_files.Example]) -> dict[str, float]:
  """Returns dict name -> preferred score: of the systems of TRIVIAL, and of the best answer for all.

  Without choices there is only the latter; there are none for scores of other kinds.
  """
  total: collections.Counter = collections.Counter()
  for example in examples:
    total.update(example.choices if task.preferred == metrics.GRADE else dict.fromkeys(example.targets, 1))
  if task.preferred == metrics.GRADE:
    score = lambda place: float(np.mean([[*e.choices.values()][place([*e.choices])] for e in examples]))
    return {name: score(place) for name, place in TRIVIAL.items()} | dict(
        constant=max(total.values()) / len(examples))
  if task.preferred not in metrics.WRITTEN:
    return {}
  often = task_files.written(task, max(sorted(total), key=total.__getitem__))
  return dict(constant=float(np.mean(metrics.WRITTEN[task.preferred](
      _references(examples), [often] * len(examples)))))


def _error(values):
  """The standard error of the mean of f64[N]; None of a score that is no mean."""
  return float(np.std(values, ddof=1) / math.sqrt(len(values))) if np.size(values) > 1 else None


def _mean_error(spreads):
  """The standard error of the mean of independent scores; None where it is unknown of one of them."""
  return None if None in spreads else math.sqrt(sum(spread ** 2 for spread in spreads)) / len(spreads)


def _mean(found):
  """The (mean, standard deviation) of the mean of independent ones."""
  return float(np.mean([mean for mean, _ in found])), _mean_error([spread for _, spread in found])


def _together(parts):
  """The Result of a task from the Results of its subtasks."""
  whole = metrics.aggregate([vars(part) for part in parts])
  spread = {name: _mean_error([part.spread[name] for part in parts if name in part.scores])
            for name in whole['scores'] if name != metrics.AGGREGATE}
  spread[metrics.AGGREGATE] = _mean_error([part.normalized()[1] for part in parts])
  unit = (lambda part, value: metrics.normalized(value, part.low, part.high)) if (
      whole['preferred'] == metrics.AGGREGATE) else lambda part, value: value
  short = [part.shortest for part in parts if part.shortest]
  names = [name for name in parts[0].trivial if all(name in part.trivial for part in parts)]
  return Result(**whole, spread=spread, low_spread=_mean_error([part.low_spread for part in parts]),
                shortest=_mean(short) if len(short) == len(parts) else None,
                examples=sum(part.examples for part in parts), bins=pooled(parts),
                trivial={name: float(np.mean([unit(part, part.trivial[name]) for part in parts]))
                         for name in names})


def pooled(results: Sequence[Result]) -> list:
  """Returns the bins of `metrics.calibration` of all examples of several tasks; [] if none has choices."""
  return [tuple(map(sum, zip(*same))) for same in zip(*[result.bins for result in results if result.bins])]


def evaluate(system, tasks: Sequence[task_files.Task], shots: Sequence[int], most: int = 0,
             say: Callable = print) -> dict[int, dict[str, Result]]:
  """Returns dict shots -> dict task -> Result of a system, see `judge`.

  say: called with a line before each task.
  """
  found: dict[int, dict[str, Result]] = {}
  for number in shots:
    found[number] = {}
    for task in tasks:
      say(f'{task.name}, {number} shots')
      found[number] |= judge(task, system, number, most)
  return found


def record(step: int, found: dict[int, dict[str, Result]], num_cut: int | None = None) -> dict:
  """Returns what `records.BIG_BENCH` of a run holds, for JSON, of the checkpoint of `step`.

  `scores` has the preferred scores as 'task/metric@2-shot', beside a grade the one per byte, and the mean
  normalised score of all tasks.
  `tasks` has all of a `Result`, `calibration` the bins of all tasks together.
  """
  scores: dict[str, float] = {}
  calibration: dict[int, list] = {}
  for shots, results in found.items():
    scores |= {f'{name}/{metric}@{shots}-shot': result.scores[metric]
               for name, result in results.items() for metric in result.shown()}
    whole = [result for name, result in results.items() if '/' not in name]
    scores[f'all/normalized@{shots}-shot'] = float(np.mean([result.normalized()[0] for result in whole]))
    calibration[shots] = pooled(whole)
  return dict(step=step, scores=scores, cut_rows=num_cut, calibration=calibration, tasks={
      shots: {name: dataclasses.asdict(result) | dict(normalized=result.normalized())
              for name, result in results.items()} for shots, results in found.items()})


HEADINGS = ('task', 'shots', 'examples', 'metric', 'score', '±', 'shortest', 'per byte', '±', 'chance', '±',
            'normalised', 'Brier', 'ECE', 'best trivial')


def rows(found: dict[int, dict[str, Result]]) -> list[list[str]]:
  """Returns the rows of the table below HEADINGS; ± is a standard error, of chance a standard deviation.

  An untrained model's score is near `shortest`, and per byte near chance.
  """
  number = lambda value: '–' if value is None else f'{value:.3f}'
  table = []
  for shots, results in found.items():
    for name, result in results.items():
      best = max(result.trivial, key=result.trivial.__getitem__, default=None)
      at, per_byte = result.preferred, result.shown()[1:]
      table.append([
          name, str(shots), str(result.examples), at, number(result.scores[at]), number(result.spread[at]),
          number(result.shortest and result.shortest[0]),
          *(number(found[per_byte[0]] if per_byte else None) for found in (result.scores, result.spread)),
          number(result.low), number(result.low_spread or None), f'{result.normalized()[0]:.1f}',
          *(number(result.scores.get(metric)) for metric in (metrics.BRIER, metrics.ECE)),
          '–' if best is None else f'{result.trivial[best]:.3f} {best}'])
  return table


@contextlib.contextmanager
def system(cfg, path: pathlib.Path, tasks: Sequence[task_files.Task], say: Callable, step: int | None = None,
           best: bool = False, devices=None):
  """Gives (the system that a run is, the step of its checkpoint).

  Texts have LENGTH tokens at most, or as many as the longest target of `tasks` has bytes. Of pairs section
  `data` says how many.

  Args:
    step: of the checkpoint, None = the newest; best: the checkpoint of `checkpoint.best` instead.
  """
  if jax.process_count() > 1:
    raise errors.UserError('--tasks scores in one process; nearest: --processes 1')
  within, rule = 'best' if best else 'checkpoints', pipeline.objective(cfg)
  if not (rule.paired or getattr(rule, 'whole', False)):
    raise errors.UserError(f'--tasks needs a run of lm, prompted or seq2seq; {path} has '
                           f'{lookup.titled(cfg.data)}')
  if rule.paired:
    with cfg.unlocked(), cfg.ignore_type():
      cfg.eval.methods = 'rank', 'decode'
    with opened.run(cfg, path, say, devices) as (plan, source):
      scorer = taskscore.Scorer(cfg, plan, source)
      at, state, _, _ = opened.restore(plan, path, source.info()['vocab'], say, step, within)
      yield Paired(scorer, state), at
    return
  bridge = harness.Harness(path, cfg.eval.batch_size, cfg=cfg, devices=devices, step=step, within=within)
  targets = [text for task in tasks for part in task.parts() for e in part.examples for text in e.targets]
  yield Continuing(bridge, max(LENGTH, *[len(text.encode()) for text in targets])), bridge.step


def write(path: pathlib.Path, found: dict) -> None:
  """Writes a `record` into the run directory `path`."""
  files.write_json(path / records.BIG_BENCH, files.plain(found))
