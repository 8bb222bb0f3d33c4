"""What all-to-alls move, by the compiled training step: 2 k cf D numbers a token each way, and no more."""

import jax
import pytest

from stmoe import experiment
from stmoe.aot import hlo
from stmoe.aot import program
from stmoe.aot import step as aot

D, ROWS, LENGTH = 64, 16, 64


@pytest.mark.parametrize('method, k', [('switch', 1), pytest.param('gshard', 2, marks=pytest.mark.slow)])
def test_bytes_per_token_are_the_analytic_ones(method, k):
  capacity = 1.25
  cfg, _ = experiment.load(f'lm/text:method={method},smoke', (
      f'model.d_model={D}', "model.layers=(('dm',3),)", 'blocks.m.executor=all_to_all', 'mesh.data=2',
      'mesh.expert=4', f'data.length={LENGTH}', f'train.batch_size={ROWS}', f'eval.batch_size={ROWS}',
      'blocks.m.router.num_experts=8', 'blocks.m.experts.d_ff=64', 'blocks.d.d_ff=64'))
  with cfg.unlocked():
    slots = k * capacity                                             # of a token, all its choices together
    cfg.blocks.m.router.capacity_factor = (slots, slots)
  _, compiled, _ = aot.build(cfg, jax.devices())
  found = program.collectives(hlo.parse(compiled.as_text()), 8)
  sums = program.by_scope(found)
  tokens, layers, number = ROWS * LENGTH / 8, 3, 4
  # There and back in the forward pass; their transposes in the backward pass.
  analytic = 2 * k * capacity * D * number
  for way in ('forward', 'backward'):
    moved = sum(sums[f'all-to-all {way}/{part}'] for part in ('dispatch', 'combine'))
    assert moved / tokens / layers == pytest.approx(analytic, rel=0.05)
  kinds = program.by_kind(found)
  assert kinds['all-to-all']['bytes'] / tokens / layers == pytest.approx(2 * analytic, rel=0.05)
  assert kinds['all-to-all']['known'] and 'all-gather' not in kinds
