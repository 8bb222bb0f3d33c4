"""Task files of BIG-bench: the benchmark's own figures of trivial systems, what is summed up, wrong files.

`pytest tests/answer --bigbench DIR` reads another folder of task files with the figures in its README.md.
"""

import json
import pathlib

import numpy as np
import pytest

from stmoe import errors
from stmoe.answer import task_files
from stmoe.data.text import big_bench
from stmoe.metrics import big_bench as metrics

HERE = pathlib.Path(__file__).parent.parent / 'data' / 'bigbench'
COLUMNS = ('low', 'choices', 'first / last', 'shortest / longest', 'constant', 'brier')


class Knowing:
  """A system that gives the same answer everywhere, or the choice at a place; None finds all equal."""

  def __init__(self, answer=None, place=None):
    self.answer, self.place = answer, place

  def rank(self, texts, choices):
    def of(each):
      place = [*each].index(self.answer) if self.answer in each else self.place and self.place(each)
      return np.zeros(len(each)) if place is None else np.where(np.arange(len(each)) == place, 0, -np.inf)
    return [of(each) for each in choices]

  def write(self, texts):
    return [str(self.answer)] * len(texts)


def score(task, system):
  return task_files.judge(task, system)[task.name]


def figures(folder):
  """dict task -> dict of the cells of the table in README.md of `folder`."""
  rows = [[cell.strip() for cell in line.strip('|').split('|')]
          for line in (folder / 'README.md').read_text().splitlines() if line.startswith('| ')]
  return {row[0].removesuffix('.json'): dict(zip(COLUMNS, row[-6:]))
          for row in rows if row[0].endswith('.json')}


def near(value, printed, count):
  """`value` is a share of `count` examples, of which `printed` has three digits."""
  exact = round(float(printed) * count) / count
  assert round(exact, 3) == float(printed) and abs(value - exact) < 1e-6, (value, printed)


def test_trivial_systems_score_what_the_benchmark_says(bigbench):
  said, checked = figures(bigbench), 0
  for task in big_bench.read(bigbench):
    if task.subtasks:
      continue
    cells, count = said[task.name], len(task.examples)
    uniform = score(task, Knowing('nothing of all this'))
    assert abs(uniform.low - float(cells['low'])) < 1e-3
    for name in ('first / last', 'shortest / longest') if cells['choices'] != '–' else ():
      for one, printed in zip(name.split(' / '), cells[name].split(' / ')):
        near(uniform.trivial[one], printed, count)
        own = score(task, Knowing(place=task_files.TRIVIAL[one]))
        assert abs(own.scores[own.preferred] - uniform.trivial[one]) < 1e-6
        assert abs(own.scores[metrics.PER_BYTE] - uniform.trivial[one]) < 1e-6
        checked += 1
    near(uniform.trivial['constant'], cells['constant'], count)
    if cells['choices'] == '–':
      answers = {text for example in task.examples for text in example.targets}
      best = max(score(task, Knowing(text)).scores[task.preferred] for text in answers)
      near(best, cells['constant'], count)
    else:                                # a choice c of a row is right 1 or 0 of its n: (c - 1) / c^2 alike
      sizes = np.array([len(e.choices) for e in task.examples])
      right = np.array([sum(value > 0 for value in e.choices.values()) for e in task.examples])
      assert abs(uniform.low - np.mean([np.mean([*e.choices.values()]) for e in task.examples])) < 1e-6
      by_hand = ((1 - 1 / sizes) ** 2 + (sizes - 1) / sizes ** 2).sum() / sizes.sum()
      assert abs(uniform.scores[metrics.BRIER] - by_hand) < 1e-6 or (right > 1).any()
      assert abs(uniform.scores[metrics.BRIER] - float(cells['brier'])) < 1e-3
  assert checked >= 12


def test_a_system_without_preferences_and_the_trap_of_calibration():
  """Its grade is drawn; where the first choice is always right, the benchmark calls it calibrated badly."""
  [task] = big_bench.read(HERE / 'simple_arithmetic_json_multiple_choice.json')
  found = score(task, Knowing())
  guessing = np.sqrt(8 * 0.1875) / 8     # its questions offer the same few texts: chance strays further
  assert found.low == 0.25 and 1.5 * guessing < found.low_spread < 2 * guessing
  assert found.scores[metrics.ECE] == pytest.approx(0.75) and found.scores[metrics.SHARED] == 0.0
  assert found.bins[3] == (8, 2.0, 2.0) and sum(count for count, *_ in found.bins) == 8


def test_subtasks_are_one_task_and_the_record_has_all():
  tasks = big_bench.read(HERE)
  found = task_files.evaluate(Knowing('7'), tasks, [0, 1], most=4, say=lambda line: None)
  name = 'simple_arithmetic_json_subtasks'
  parts = [found[0][f'{name}/{part}_digit'] for part in ('one', 'three', 'two')]
  whole = found[0][name]
  assert whole.preferred == metrics.AGGREGATE and whole.examples == 12
  assert whole.scores[metrics.AGGREGATE] == pytest.approx(np.mean([p.normalized()[0] for p in parts]))
  assert whole.spread[metrics.AGGREGATE] == pytest.approx(
      np.sqrt(sum(part.normalized()[1] ** 2 for part in parts)) / 3)
  record = task_files.record(9, found)
  every = [result.normalized()[0] for task, result in found[1].items() if '/' not in task]
  assert record['scores']['all/normalized@1-shot'] == pytest.approx(np.mean(every)) and len(every) == 6
  assert record['tasks'][1]['known_unknowns']['examples'] == 4
  assert sum(count for count, *_ in record['calibration'][0]) == 4 * 4   # tasks with choices, examples


class Halving:
  """A system that finds every byte equally likely."""

  def rank(self, texts, choices):
    return [np.array([-len(choice.encode()) * np.log(2) for choice in each]) for each in choices]


def test_the_sum_of_equal_bytes_takes_the_shortest_choice_and_tables_say_what_it_scores(tmp_path):
  rows = [{'no': 1, 'never': 0}, {'always': 1, 'yes': 0}, {'one': 1, 'two': 0, 'three': 0}]
  (tmp_path / 't.json').write_text(json.dumps(TASK | dict(examples=[
      dict(input=str(i), target_scores=scores) for i, scores in enumerate(rows)])))
  [task] = big_bench.read(tmp_path / 't.json')
  found = score(task, Halving())
  assert found.shortest == pytest.approx((0.5, 0.5 / 3))              # 1, 0, and 1 or 0
  assert found.scores[metrics.GRADE] == pytest.approx(0.5, abs=1 / 6)
  assert found.low == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
  [row] = task_files.rows({0: {'sum': found}})
  cells = dict(zip(task_files.HEADINGS, row))
  assert len(row) == len(task_files.HEADINGS) and cells['shortest'] == '0.500'
  assert cells['per byte'] == f'{found.scores[metrics.PER_BYTE]:.3f}' and cells['chance'] == '0.444'
  names = [f'sum/{name}@0-shot' for name in (metrics.GRADE, metrics.PER_BYTE)]
  assert {*names} < {*task_files.record(1, {0: {'sum': found}})['scores']}
  other = task_files.Result({'bleu': 1.0}, {'bleu': None}, 'bleu', 0.0, 100.0, 0.0, None, 1, {}, [])
  assert '–' in task_files.rows({0: {'other': other}})[0] and other.shown() == ['bleu']


ROW = dict(input='1 + 1 =', target_scores={'2': 1, '3': 0})
TASK = dict(canary='c', name='sum', description='d', keywords=['k'], metrics=['multiple_choice_grade'],
            preferred_score='multiple_choice_grade', examples=[ROW, ROW | dict(input='2 + 2 =')])


@pytest.mark.parametrize('says, change', [
    ("t.json: key 'canary' is missing", dict(canary=None)),
    ("t.json: key 'preferred_score' is missing; nearest: prefered_score",
     dict(preferred_score=None, prefered_score='x')),
    ("t.json: examples[1]: key 'input' is missing; nearest: inputs", dict(examples=[ROW, dict(inputs='a')])),
    ("examples[0]: keys 'target' and 'target_scores' are missing",
     dict(examples=[dict(input='a', targets='b')])),
    ("examples[0]: target '4' is none of its choices; nearest: 2", dict(examples=[ROW | dict(target='4')])),
    ("examples[0]: key 'target_scores' is '{'2': 0}'; wanted: choices and scores, one above 0",
     dict(examples=[dict(input='a', target_scores={'2': 0})])),
    ("t.json: key 'target_scores': choices have 1 on average, and 1 is the best score; nearest: 0 for",
     dict(examples=[ROW | dict(input=text, target_scores={'2': 1, '3': 1}) for text in 'abc'])),
    ("examples[1]: key 'target_scores' is missing; a metric is of choices",
     dict(examples=[ROW, dict(input='a', target='b')])),
    ("key 'metrics': 'multiple_choice_grad' is not computed here; nearest: multiple_choice_grade",
     dict(metrics=['multiple_choice_grad'])),
    ("key 'preferred_score' is 'rouge'; wanted: the name of one metric, such as rouge1, rouge2, rougeLsum",
     dict(preferred_score='rouge')),
    ("key 'output_regex' is no pattern", dict(output_regex='(')),
    ("key 'append_choices_to_input' is 'yes'; wanted: true or false", dict(append_choices_to_input='yes')),
    ('--shots 2: ', dict(keywords=[])), ("key 'examples' is '[]'", dict(examples=[]))], ids=str)
def test_mistakes_are_one_line_with_file_and_key(tmp_path, says, change):
  (tmp_path / 't.json').write_text(json.dumps(
      {key: value for key, value in (TASK | change).items() if value is not None}))
  with pytest.raises(errors.UserError) as error:
    task_files.check(big_bench.read(tmp_path), [2], lambda line: None)
  assert says in str(error.value).replace('"', "'") and str(tmp_path) in str(error.value)


def test_drawn_examples_are_those_that_are_checked(tmp_path):
  """One example of two says nothing: whether it is the one that is asked depends on the draw."""
  nothing = dict(input='a', target_scores={'2': 1, '3': 1})
  refused = []
  for rows in ([nothing, ROW], [ROW, nothing]):
    (tmp_path / 't.json').write_text(json.dumps(TASK | dict(examples=rows)))
    tasks = big_bench.read(tmp_path)
    task_files.check(tasks, [0], print)
    try:
      task_files.check(tasks, [0], print, 1)
    except errors.UserError:
      refused.append(rows)
      continue
    assert np.isfinite(task_files.judge(tasks[0], Knowing(), 0, 1)['sum'].normalized()[0])
  assert len(refused) == 1
