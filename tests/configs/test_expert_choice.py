"""Published figures of expert choice agree with one another."""

import numpy as np

from stmoe.configs.expert_choice import paper


def test_the_tasks_are_those_of_the_small_model():
  """The printed means of 11 tasks are means of the figures by task: 0.1B with 64 experts. (They are cut off, not rounded.)"""
  means = np.mean(list(paper.REPORTED_TASKS.values()), axis=0)
  np.testing.assert_allclose(means, paper.REPORTED['0.1b', 64], atol=0.1)
