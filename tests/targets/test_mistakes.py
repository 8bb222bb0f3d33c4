"""A wrong answer of a target, of its model, or of a source of data is a line that names its file."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import targets
from stmoe.data import batches

HERE = r'tests/targets/test_mistakes\.py'
NUMBER, ROW = jnp.float32(1), jnp.ones(2)


class Probe:
  """A target, a model and a source of data that all answer what they are given."""

  hidden = ()

  def __init__(self, given):
    self.given = given

  def __call__(self, batch, **context):
    return self.given

  def loss(self, outputs, batch, counts):
    return self.given

  def judge(self, outputs, batch):
    return self.given

  def shapes(self, rows):
    return self.given


LOSSES = {
    'a number': (NUMBER, r'loss returned float32\[\]; wanted: \(loss f32\[\], dict name'),
    'no mean': ((ROW, {}), r'loss returned the loss as float32\[2\]; wanted'),
    'a metric': ((NUMBER, {'loss/x': ROW}), r'loss returned loss/x as float32\[2\]; wanted'),
}
SHAPES = {
    'no dict': ([(4,)], r'shapes\(4\) returned a list of 1; wanted: dict name -> \(shape, dtype\)'),
    'shape alone': (dict(x=(4, 8)), r'shapes\(4\) has x=\(4, 8\); wanted: \(shape, dtype\)'),
    'no rows': (dict(x=((8,), np.int32)), r'shapes\(4\) has x=.*, the shape beginning with 4'),
}


@pytest.mark.parametrize('case', LOSSES)
def test_a_loss(case):
  given, says = LOSSES[case]
  with pytest.raises(errors.UserError, match=f'{HERE}: {says}'):
    jax.eval_shape(lambda: targets.loss(Probe(given), None, {}, None))


@pytest.mark.parametrize('case', SHAPES)
def test_the_shapes_of_a_source(case):
  given, says = SHAPES[case]
  with pytest.raises(errors.UserError, match=f'{HERE}: {says}'):
    batches.shapes(Probe(given), 4)


def test_what_is_judged_and_what_a_model_answers():
  with pytest.raises(errors.UserError, match=rf'{HERE}: judge returned float32\[2\]; wanted: dict'):
    targets.judge(Probe(ROW), None, {})
  with pytest.raises(errors.UserError, match=rf'{HERE}: it returned float32\[2\]; wanted: \(outputs'):
    targets.predict(types.SimpleNamespace(), Probe(ROW), {})
