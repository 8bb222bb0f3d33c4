"""The target of images: smooth L1 and the signal-to-noise ratio, by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis.figures import restored
from stmoe.runs import by_step
from stmoe.runs import read as runs
from stmoe.targets import pixels

# Two images of one row of two pixels; the second row of the batch holds none.
BATCH = dict(pixels=jnp.array([[[[0.5], [0.5]]], [[[0.0], [0.0]]]]), weights=jnp.array([[1], [0]]))
OUTPUTS = jnp.array([[[[0.6], [0.2]]], [[[9.0], [9.0]]]])            # errors 0.1 and -0.3


def test_the_loss_and_the_ratio_by_hand():
  target = pixels.Pixels(beta=0.2)
  loss, _ = target.loss(OUTPUTS, BATCH, target.counts(BATCH))
  np.testing.assert_allclose(loss, (0.5 * 0.01 / 0.2 + 0.3 - 0.1) / 2, rtol=1e-5)
  values = target.metrics(target.judge(OUTPUTS, BATCH) | dict(weight=1.0))
  np.testing.assert_allclose(values['eval/psnr'], -10 * np.log10((0.01 + 0.09) / 2), rtol=1e-5)
  np.testing.assert_allclose(values['eval/loss'], loss, rtol=1e-6)


def test_the_figure_has_a_row_of_each_kind(tmp_path):
  shown = {name: np.asarray(x) for name, x in pixels.Pixels().pictures(
      OUTPUTS, BATCH | dict(image=0.5 * BATCH['pixels'])).items()}
  fields = {field.name: None for field in dataclasses.fields(runs.Run)}
  by_step.write_shown(tmp_path, 5, shown)
  run = runs.Run(**fields | dict(path=tmp_path, name='made'))
  figure = restored.draw(run)['restored']
  assert [float(ax.images[0].get_array()[0, 0]) for ax in figure.axes[::2]] == [0.25, pytest.approx(0.6), 0.5]


def test_another_size_is_refused():
  with pytest.raises(errors.UserError, match='nearest: model.image_size=1'):
    pixels.Pixels().judge(jnp.ones((2, 2, 2, 1)), BATCH)
