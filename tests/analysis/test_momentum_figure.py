"""The figure of the momentum's norm shows every layer that reports one, at its depth."""

import dataclasses
import pathlib

import numpy as np

from stmoe.analysis.figures import momentum_smoe
from stmoe.runs import read as runs


def made(norms):
  """A run whose layers have momentum_norm `norms`[layer] at steps 10, 20, ..."""
  count = len(next(iter(norms.values()), ()))
  lines = [{'step': 10 * (i + 1)} | {f'moe/{layer}/momentum_norm': float(y[i]) for layer, y in norms.items()}
           for i in range(count)]
  fields = {field.name: None for field in dataclasses.fields(runs.Run)}
  return runs.Run(**fields | dict(path=pathlib.Path(), name='made', lines=lines))


def test_norms_by_depth_and_over_steps():
  norms = {'decoder_01': np.array([1.0, 2.0, 3.0]), 'decoder_03': np.array([4.0, 5.0, 6.0])}
  figure = momentum_smoe.draw(made(norms))['momentum_norm']
  by_depth, over_steps = figure.axes
  assert [line.get_xydata().tolist() for line in by_depth.lines] == [
      [[1, 1], [2, 4]], [[1, 2], [2, 5]], [[1, 3], [2, 6]]]
  assert [line.get_label() for line in by_depth.lines] == ['step 10', 'step 20', 'step 30']
  assert [line.get_ydata().tolist() for line in over_steps.lines] == [[1, 2, 3], [4, 5, 6]]
  assert set(momentum_smoe.CAPTIONS) == {'momentum_norm'}


def test_a_run_without_momentum_has_no_figure():
  assert momentum_smoe.draw(made({})) == {}
