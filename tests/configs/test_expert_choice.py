"""Published figures of expert choice agree with one another."""

import numpy as np

from stmoe.configs.expert_choice import paper


def test_the_tasks_are_those_of_the_small_model():
  """The printed means of 11 tasks, cut off to a digit, are means of the figures by task."""
  means = np.mean(list(paper.REPORTED_TASKS.values()), axis=0)
  np.testing.assert_allclose(means, paper.REPORTED['0.1b', 64], atol=0.1)
