"""The model that restores images: patches are put back where they came from; images of another size."""

import json

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import flops
from stmoe.parts.pictures import conv
from stmoe.runs import records
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state


def test_patches_are_put_back():
  images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  patches = images.reshape(2, 2, 3, 2, 3, 3).swapaxes(2, 3).reshape(2, 4, 27)
  np.testing.assert_array_equal(conv.unpatched(patches, 6, 3), images)


def test_an_image_of_another_size_is_one_line():
  cfg = experiment.load('mofme/digits:smoke')[0].unlock()
  cfg.data.image_size = 8
  mesh = state.make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh), pytest.raises(errors.UserError, match='images of 8 x 8 x 1 for a model') as caught:
    check.forward(cfg, state.blueprint(cfg, mesh))
  assert '\n' not in str(caught.value)


def test_operations_are_counted_by_hand():
  cfg = experiment.load('mofme/digits')[0]
  d, n, tokens, pixels, stem, tail = 64, 256, 16, 256, 16, 16
  del n
  convolutions = 9 * pixels * (stem + 4 * stem ** 2 + 2 * tail ** 2 + tail * tail // 2 + 2 * (tail // 2) ** 2
                               + tail // 2)
  ends = tokens * (16 * stem * d + d * 16 * tail)
  block = 4 * d * d + 2 * tokens * d + 8 * d + (2 + 2 * 2) * d * d + 2 * d * 256   # with the router's D E
  assert flops.active_per_token(cfg)['forward_per_row'] == 2 * (convolutions + ends + 2 * tokens * block)


def test_experts_are_few_numbers():
  """The whole model at the released size, beside whole experts; head and tail are the same in both."""
  load = lambda arg: flops.parameters(experiment.load(f'mofme/weather{arg}')[0])['total']
  assert 0.57 < 1 - load('') / load(':method=naive') < 0.59


@pytest.mark.slow
def test_a_run_evaluates_and_continues(tmp_path):
  load = lambda *changed: experiment.load('mofme/digits:smoke', list(changed))[0]
  one = jax.devices()[:1]
  assert loop.train(load(), tmp_path / 'whole', devices=one) == 0
  assert loop.train(load('train.steps=20'), tmp_path / 'parts', devices=one) == 0
  assert loop.train(load(), tmp_path / 'parts', devices=one) == 0
  whole, parts = (json.loads((tmp_path / name / 'DONE').read_text()) for name in ('whole', 'parts'))
  del whole['time'], parts['time']
  assert whole == parts and whole['eval/psnr'] > 10
  assert records.shown(tmp_path / 'whole')[1]['restored'].shape == (12, 16, 16, 1)
