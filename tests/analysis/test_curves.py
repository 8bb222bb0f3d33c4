"""Figures of training from synthetic runs: what is drawn, and that files are made."""

import subprocess
import sys

import numpy as np
import pytest

from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.runs import read as runs
from tests.analysis import synthetic


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  paths = [synthetic.write_run(root / 'dense', 'dense', layers=(), final=2.4),
           synthetic.write_run(root / 'switch', 'switch', seed=1),
           synthetic.write_run(root / 'st_moe', 'st_moe', seed=2, experts=16)]
  return runs.read_all(paths)


def test_loss_draws_validation_bits_against_three_abscissae(found):
  figure = curves.loss(found)
  abscissae = [ax.get_xlabel() for ax in figure.axes]
  assert abscissae == ['optimizer steps', 'target tokens', 'active training FLOPs']
  assert 'bits per byte' in figure.axes[0].get_ylabel()
  validation = [line for line in figure.axes[2].lines if line.get_marker() == 'o']
  assert len(validation) == 3
  x, y = found[0].series('eval/bits_per_byte', 'flops')
  np.testing.assert_array_equal(validation[0].get_xdata(), x)
  np.testing.assert_array_equal(validation[0].get_ydata(), y)


def test_training_loss_is_drawn_in_the_unit_of_validation(found):
  line = [line for line in curves.loss(found[:1]).axes[0].lines if line.get_marker() == 'None'][0]
  _, nats = found[0].series('loss/ce')
  # The synthetic run is a byte model: bits are nats / ln 2, and the running mean keeps the first value.
  assert line.get_ydata()[0] == pytest.approx(nats[0] / np.log(2))


def test_nats_when_a_run_has_no_bits(found, tmp_path):
  folder = synthetic.write_run(tmp_path / 'words', 'switch')
  text = (folder / 'metrics.jsonl').read_text().replace('eval/bits_per_byte', 'eval/other')
  (folder / 'metrics.jsonl').write_text(text)
  assert 'nats per token' in curves.loss([found[0], runs.read(folder)]).axes[0].get_ylabel()


def test_seeds_share_one_colour_and_one_legend_entry(found):
  figure = curves.loss(found, labels=['dense', 'sparse', 'sparse'])
  validation = [line for line in figure.axes[0].lines if line.get_marker() == 'o']
  assert validation[1].get_color() == validation[2].get_color() != validation[0].get_color()
  assert [t.get_text() for t in figure.legends[0].get_texts()] == ['dense', 'sparse']


def test_health_keeps_the_colours_of_the_loss_and_leaves_dense_out(found):
  legend = curves.health(found).legends[0]
  assert [t.get_text() for t in legend.get_texts()] == ['switch', 'st_moe']
  assert [line.get_color() for line in legend.get_lines()] == list(canvas.PALETTE[1:3])


def test_load_is_log_ratio_to_the_mean(tmp_path):
  folder = synthetic.write_run(tmp_path / 'a', layers=('decoder_01',), experts=4, steps=20)
  # Mean load 4: expert 0 has twice, 1 and 2 half of it, 3 more than the scale of four times shows.
  np.savez(folder / 'router_stats' / '20.npz', moe_load=np.array([[8.0, 2.0, 2.0, 4.0]]),
           layers=np.array(['decoder_01']))
  image = curves.load(runs.read(folder)).axes[0].collections[0]
  np.testing.assert_allclose(image.get_array().ravel(), [1.0, -1.0, -1.0, 0.0], atol=1e-6)


def test_final_marks_the_mean_of_seeds():
  texts = [t.get_text() for t in curves.final({'a': [2.0, 3.0], 'b': [4.0]}).axes[0].texts]
  assert texts == ['2.500', '4.000']


def test_figures_are_saved_as_png_and_svg_the_same_bytes_each_time(found, tmp_path):
  made = curves.figures(found, baselines={'byte 3-gram': 2.616})
  assert list(made) == ['loss', 'routing_health', 'expert_load_switch', 'expert_load_st_moe']
  png, svg = canvas.save(made['loss'], tmp_path / 'plots', 'loss')
  assert png.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n' and svg.read_text().lstrip().startswith('<?xml')
  again = canvas.encode(curves.figures(found, baselines={'byte 3-gram': 2.616})['loss'], 'svg')
  assert svg.read_bytes() == again


def test_drawing_imports_neither_jax_nor_pyplot():
  code = ('import sys; from stmoe.analysis import curves; '
          'sys.exit(any(m in sys.modules for m in ("jax", "matplotlib.pyplot", "tensorflow")))')
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_palette_stays_distinct_for_the_commonest_colour_blindness():
  # Deuteranopia in linear RGB (Vienot, Brettel and Mollon, 1999): every pair of the first six
  # colours stays at least 0.12 apart of a unit cube.
  matrix = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
  rgb = np.array([[int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)] for c in canvas.PALETTE[:6]])
  seen = np.clip(rgb ** 2.2 @ matrix.T, 0, 1) ** (1 / 2.2)
  distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
  assert min(distances) > 0.12, distances


def test_the_load_of_a_run_that_went_on_from_another_begins_where_it_did():
  loads = dict(decoder_01=(np.array([250, 260, 270]), np.ones((3, 4))))
  run = runs.Run(path=None, name='upcycled', config={}, env={}, lines=[], loads=loads, states={}, done=None)
  [mesh] = curves.load(run).axes[0].collections
  assert mesh.get_coordinates()[0, :, 0].tolist() == [240, 255, 265, 270]
