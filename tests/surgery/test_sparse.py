"""Models whose layers surgeries cannot name are refused in a line."""

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.surgery import dense
from stmoe.surgery import pr_moe
from stmoe.surgery import sparse


@pytest.mark.parametrize('look', [
    sparse.found, dense.found, lambda cfg: pr_moe.operate({}, cfg, None, keep=0.5)])
def test_a_model_without_blocks_is_one_line(look):
  cfg = experiment.load('home/many_tasks')[0]
  with pytest.raises(errors.UserError, match='Home are no blocks with letters.*nearest') as caught:
    look(cfg)
  assert '\n' not in str(caught.value)
