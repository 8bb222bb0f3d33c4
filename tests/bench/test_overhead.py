"""What the training loop costs beside its step: both are timed with the same compiled step."""

import jax

from stmoe.bench import overhead
from tests.train import tiny_run


def test_the_loop_and_the_bare_step_are_timed(tmp_path):
  tiny_run.write_corpus(tmp_path)
  row = overhead.measure(tiny_run.config(tmp_path), rounds=2, steps=2, devices=jax.devices()[:1])
  assert row['step_ms'] > 0 and row['loop_ms'] > 0 and row['ratio'] > 0
  assert len(row['ratios']) == 2
