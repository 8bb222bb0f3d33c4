"""The first training state: a program for all seeds, and the numbers of each."""

import jax
import numpy as np

from stmoe import experiment
from stmoe.train import state as states


def test_seeds_share_the_program_and_differ_in_numbers():
  text, numbers = {}, {}
  for seed in (0, 2**32):                # alike in their low words
    cfg, _ = experiment.load('customization/digits:smoke', [f'seed={seed}'])
    with states.on_mesh(cfg.mesh) as mesh:
      plan = states.blueprint(cfg, mesh)
      begin, words = states.beginning(cfg, plan)
      text[seed], numbers[seed] = begin.lower(words).as_text(), begin(words)['params']
      within = jax.jit(lambda cfg=cfg, plan=plan: states.fresh(cfg, plan)['params'])()
      jax.tree.map(np.testing.assert_array_equal, numbers[seed], within)
  first, second = map(jax.tree.leaves, numbers.values())
  assert text[0] == text[2**32]
  assert any(np.any(a != b) for a, b in zip(first, second))


def test_a_program_that_compiles_faster_draws_the_same_numbers(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS')
  cfg, _ = experiment.load('customization/digits:smoke')
  with states.on_mesh(cfg.mesh) as mesh:
    options = states._of_draws(mesh)
    begin, words = states.beginning(cfg, states.blueprint(cfg, mesh))
    made = {level: begin.lower(words).compile({level_name: level})(words)['params']
            for level_name in options for level in (options[level_name], 3)}
  jax.tree.map(np.testing.assert_array_equal, *made.values())
  assert len(made) == 2
