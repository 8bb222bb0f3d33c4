"""ExpertRAG's cost model on a real configuration; its formulas have their examples."""

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import canvas
from stmoe.analysis import flops
from stmoe.analysis import retrieval

FOUND = retrieval.Retrieval(search=4.0, documents=3, read=2.0)


def test_the_parts_of_a_model_are_its_forward():
  cfg = experiment.load('lm/quickstart:method=st_moe')[0]
  model = retrieval.of_configuration(cfg)
  assert model.total == pytest.approx(flops.active_per_token(cfg)['forward'])
  width, layers = cfg.model.d_model, sum(repeats for _, repeats in cfg.model.layers)
  assert model.router == 2 * width * cfg.blocks.m.router.num_experts * layers
  assert model.experts == 2 * 2 * 2 * width * cfg.blocks.m.experts.d_ff * layers   # top-2, two matrices


def test_costs_of_gate_and_always_differ_by_what_is_saved():
  for share in (0.0, 0.3, 1.0):
    assert retrieval.expected(21.0, 1.0, FOUND) - retrieval.expected(21.0, share, FOUND) == pytest.approx(
        retrieval.saving(share, FOUND))
    assert retrieval.break_even(retrieval.expected(21.0, share, FOUND), 21.0, FOUND) == pytest.approx(share)
  assert retrieval.break_even(5.0, 21.0, FOUND) == 0 and retrieval.break_even(99.0, 21.0, FOUND) == 1


def test_the_figure_shows_where_a_larger_model_costs_the_same():
  figure = retrieval.draw(21.0, FOUND, 26.0)
  dot = figure.axes[0].lines[-1]
  assert dot.get_xydata().tolist() == [[0.5, 26.0]]
  assert canvas.encode(figure, 'svg')


def test_a_share_above_one_is_one_line():
  with pytest.raises(errors.UserError, match='share=1.5 of the queries is not from 0 to 1; nearest: 1'):
    retrieval.expected(21.0, 1.5, FOUND)
