"""What the page of kernels times on CPUs: steps in turn, and ranks of a list."""

from stmoe.experiments.kernels import counting
from stmoe.experiments.kernels import steps
from tests.train import tiny_run


def test_steps_are_timed_in_turn(tmp_path):
  cfg = tiny_run.config(tiny_run.write_corpus(tmp_path))
  times = steps.measure([cfg, cfg], rounds=2)
  assert [len(row) for row in times] == [2, 2] and min(map(min, times)) > 0


def test_both_ways_of_ranking_are_timed():
  assert min(counting.milliseconds(64, 5, rounds=1)) > 0
