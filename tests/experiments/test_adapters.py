"""The tables of experiments/adapters: means over seeds, and steps over the first method's."""

import pytest

from stmoe.experiments.adapters import costs
from stmoe.experiments.adapters import sweep
from stmoe.experiments.adapters import tasks
from tests.train import tiny_run

KIB = 2 ** 10


def test_scores_are_means_over_seeds_and_tasks():
  scored = [dict({f'{task}/accuracy@rank': str(at) for at, task in enumerate(sweep.TASKS)}, name='lora')
            | {'average@rank': str(50 + seed)} for seed in (0, 2)]
  told = [{'name': 'lora', 'value': f'[["{task}", 1.0]]', 'eval/loss': str(at + seed)}
          for seed in (0, 1) for at, task in enumerate(sweep.TASKS)]
  other = dict(told[0], name='mixlora')
  heading, _, row = tasks.lines(scored, [*told, other])
  assert heading.split(' | ')[1:5] == ['name', 'parameters', 'docstring', 'keyword']
  # Losses 0, 1, 2, 3 of seed 0 and 1, 2, 3, 4 of the other: means 1.5 and 2.5.
  assert row == ('| lora | 0.0, 0.500 | 1.0, 1.500 | 2.0, 2.500 | 3.0, 3.500 | 51.0 ± 1.4 | 2.000 ± 0.707 '
                 '| 2 |')


def test_costs_are_told_over_the_first_method():
  one = dict(parameters=2000, trained=2000, optimizer_bytes=16 * KIB, peak_bytes=KIB ** 2, step_ms=100.0,
             ratio=1.0)
  two = dict(one, trained=500, optimizer_bytes=4 * KIB, peak_bytes=KIB ** 2 // 2, step_ms=80.4, ratio=0.8)
  *_, first, second = costs.lines(dict(full=one, lora=two))
  assert first == '| full | 2,000 | 2,000 | 16 | 1.0 | 1.00 | 100 | 1.00 |'
  assert second == '| lora | 2,000 | 500 | 4 | 0.5 | 0.50 | 80 | 0.80 |'


@pytest.mark.slow
def test_only_what_trains_has_state(tmp_path):
  corpus = tiny_run.write_corpus(tmp_path)
  cfgs = dict(full=tiny_run.config(corpus), part=tiny_run.config(corpus, **{'train.trainable': 'attention'}))
  found = costs.measure(cfgs, rounds=1)
  full, part = found['full'], found['part']
  assert full['trained'] == full['parameters'] == part['parameters'] > part['trained'] > 0
  assert part['optimizer_bytes'] < full['optimizer_bytes'] == 8 * full['parameters'] + 4
  assert full['ratio'] == 1.0 and part['step_ms'] > 0 and part['peak_bytes'] < full['peak_bytes']
