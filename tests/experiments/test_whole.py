"""Two sides in turn (experiments/kernels/whole): workers, ratios, lines. Needs no PyTorch."""

import json
import sys

import pytest

from stmoe import errors
from stmoe.experiments.kernels.whole import __main__ as whole
from stmoe.experiments.kernels.whole import ours
from stmoe.experiments.kernels.whole import sizes
from stmoe.experiments.kernels.whole import turns

ECHO = """
import json, sys
job = json.loads(sys.argv[1])
print('a line of a library')
print(json.dumps(dict(first=job['first'], parameters=5, versions={job['name']: '1'})), flush=True)
for number, line in enumerate(sys.stdin):
  print(json.dumps(dict(s=job['s'] * (number + 1) * int(line))), flush=True)
"""


def worker(**job):
  return turns.Worker([sys.executable, '-c', ECHO, json.dumps(job)])


def test_two_sides_run_in_turn_and_are_compared():
  workers = dict(unrolled=worker(first=[[1, 2]], name='jax', s=1.0),
                 eager=worker(first=[[1, 3]], name='torch', s=3.0))
  taken = turns.in_turn(workers, rounds=2, times=2)
  found = whole.agreement(workers)
  for each in workers.values():
    each.close()
  assert taken == dict(unrolled=[4.0, 6.0], eager=[12.0, 18.0])      # the first round warmed up
  assert found == dict(parameters=5, versions=dict(jax='1', torch='1'), apart=0.5)
  both = turns.compared(*({form: taken[form]} for form in taken))
  assert both == dict(ours='unrolled', theirs='eager', ratio=3.0, low=3.0, high=3.0)
  line = whole.line(dict(name='tiny', rows=2, tokens=50, seconds=taken, **both, **found))
  assert '| unrolled | 10 | eager | 3 | 3.00 |' in line


def test_a_side_that_ends_says_why():
  with pytest.raises(errors.UserError, match='no such library'):
    turns.Worker([sys.executable, '-c', 'raise SystemExit("no such library")', '{}'])


def test_a_batch_has_the_targets_that_transformers_has():
  ids = ours.np.array([[5, 6, 7]], ours.np.int32)
  batch = ours.batch(ids, ours.np.array([[6, 7, -100]]))
  assert batch['decoder_target_tokens'].tolist() == [[6, 7, 0]]
  assert batch['decoder_loss_weights'].tolist() == [[1, 1, 0]]
  assert sizes.config(sizes.SIZES['dense'])['model_type'] == 'llama'
