"""The best checkpoint: of the score that is named now, and the one that was saved last."""

import jax.numpy as jnp
import ml_collections
import pytest

from stmoe import targets
from stmoe.checkpoints import best
from stmoe.checkpoints import stored
from stmoe.runs import records

MEASURES = {'eval/loss': targets.Measure('nats'), 'eval/accuracy': targets.Measure('', 'higher')}


def opened(path, score):
  """Returns the Best of a run directory that is begun or continued with checkpoint.best=`score`."""
  return best.Best(ml_collections.ConfigDict(dict(checkpoint=dict(best=score))), path, (), MEASURES)


def saved(kept, step, value):
  """Offers a score; returns whether it was the best, and so kept."""
  if improved := kept.improves(step, {kept.name: value}):
    kept.save(step, {kept.name: value}, dict(w=jnp.ones(3)), dict(step=step), {})
  return improved


@pytest.mark.parametrize('first, second, value', [('eval/loss', 'eval/accuracy', 0.1),
                                                  ('eval/accuracy', 'eval/loss', 9.0)])
def test_another_score_begins_anew(tmp_path, first, second, value):
  kept = opened(tmp_path, first)
  assert saved(kept, 2, 5.0) and not saved(kept, 4, 5.0)
  assert saved(opened(tmp_path, second), 6, value)
  assert records.best(tmp_path) == dict(step=6, name=second, value=value)
  assert stored.steps(tmp_path / 'best') == [6]


def test_what_a_kill_left_of_a_later_step_is_not_kept_instead(tmp_path):
  assert saved(opened(tmp_path, 'eval/loss'), 8, 5.0)
  (tmp_path / 'best.json').unlink()      # the kill came before it
  assert saved(opened(tmp_path, 'eval/loss'), 6, 4.0)
  assert records.best(tmp_path)['step'] == 6 and stored.steps(tmp_path / 'best') == [6]
