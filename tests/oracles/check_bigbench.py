"""Checks of BIG-bench (arXiv:2206.04615): prompts, scores of texts, choices and targets, and their means.

Cases of `format` name a task file of the benchmark: it is looked for beside the folder of the cases, in
data/bigbench, and in tests/data/bigbench.
"""

import pathlib

import cases
import numpy as np
import pytest

from stmoe.data.text import big_bench as tasks
from stmoe.metrics import big_bench as metrics

DATA = cases.ROOT / 'tests' / 'data' / 'bigbench'


def _file(case, name):
  """The task file `name`, wherever it is."""
  folders = [folder / 'data' / 'bigbench' for folder in case.path.resolve().parents]
  for folder in [*folders, DATA]:
    if (folder / f'{name}.json').is_file():
      return folder / f'{name}.json'
  pytest.skip(f'{name}.json of the benchmark is not here')


def _cut(values, counts):
  """The parts of an array with these lengths, as lists."""
  return [part.tolist() for part in np.split(values, np.cumsum(counts)[:-1])]


def format(case):
  c = case.config
  seed = case.option('seed', {c.get('seed', 42): c.get('seed', 42)}, 42)
  [task] = tasks.read(_file(case, pathlib.Path(c['task']).stem))
  found = tasks.prompts(task, c['shots'], c.get('max_examples') or 0, seed)
  examples = [example for _, example in found]
  flat = lambda parts: [one for part in parts for one in part]
  strings = dict(inputs=[text for text, _ in found], targets=flat(e.targets for e in examples),
                 choices=flat(e.choices for e in examples))
  for name, texts in strings.items():
    assert case[name].tolist() == texts, name
  case.assert_close('target_counts', np.array([len(e.targets) for e in examples], np.int32))
  case.assert_close('choice_counts', np.array([len(e.choices) for e in examples], np.int32))
  case.assert_close('choice_scores', np.array(flat(e.choices.values() for e in examples)))
  low, high = metrics.limits(task.preferred)
  if task.preferred == metrics.GRADE:
    low = np.mean([np.mean([*e.choices.values()]) for e in examples])
  case.assert_close('low_score', low)
  case.assert_close('high_score', high)


def _examples(case):
  return [dict(references=texts) for texts in _cut(case['targets'], case['target_counts'])]


def generative(case):
  c = case.config
  texts = [tasks.postprocessed(text, c.get('stop_string'), c.get('output_regex'), c.get('max_length'))
           for text in case['raw'].tolist()]
  assert texts == case['processed'].tolist()
  examples = _examples(case)
  for name in set(case.names()) - {'raw', 'processed', 'targets', 'target_counts'}:
    case.assert_close(name, np.mean(metrics.WRITTEN[name](examples, texts)))


def log_likelihood(case):
  log_probs = [np.array(part) for part in _cut(case['log_prob'], case['target_counts'])]
  examples = _examples(case)
  for name in case.names('log_likelihood'):
    case.assert_close(name, np.mean(metrics.LIKELY[name](examples, log_probs)))


def multiple_choice(case):
  counts = case['choice_counts']
  rows = lambda name: [row[:count] for row, count in zip(case[name], counts)]
  texts = [[f'choice {i} {j}' for j in range(count)] for i, count in enumerate(counts)]
  names = case.option('choice_names', {'choice {i} {j}': 'made', 'as in the task': 'task'}, 'choice {i} {j}')
  if names == 'task':
    [task] = tasks.read(_file(case, case.config['task']))
    texts = [[*example.choices] for example in task.examples]
  ranked = metrics.Ranked.of(rows('absolute_log_prob'), rows('target_scores'), texts)
  relative = np.full(case['absolute_log_prob'].shape, -np.inf)
  for row, found in zip(relative, ranked.log_probs):
    row[:len(found)] = found
  case.assert_close('normalized_log_prob', relative)
  case.assert_close('chosen', ranked.chosen())
  low, _ = ranked.chance()
  case.assert_close('low_score', low)
  grade = np.mean(metrics.multiple_choice_grade(ranked))
  case.assert_close('normalized_preferred', metrics.normalized(grade, low, 1.0))
  for name in set(case.names()) & set(metrics.RANKED):
    case.assert_close(name, np.mean(metrics.RANKED[name](ranked)))


def aggregate(case):
  names, subtasks = case['metrics'].tolist(), []
  for row, preferred, low, high in zip(case['scores'], case['preferred'].tolist(), case['low'], case['high']):
    scores = {name: score for name, score in zip(names, row) if not np.isnan(score)}
    subtasks.append(dict(scores=scores, preferred=preferred, low=low, high=high))
  found = metrics.aggregate(subtasks)
  case.assert_close('mean', np.array([found['scores'][name] for name in names]))
  case.assert_close(metrics.AGGREGATE, found['scores'][metrics.AGGREGATE])
  assert case['aggregate_preferred'].tolist() == [found['preferred']]
  case.assert_close('aggregate_low', found['low'])
  case.assert_close('aggregate_high', found['high'])
