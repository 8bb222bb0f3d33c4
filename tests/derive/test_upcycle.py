"""Which fields of a dense model may differ from those of the model that it is to become, and how it fits."""

import jax
import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.derive import refit
from stmoe.derive import upcycle
from stmoe.runs import directory as rundir
from stmoe.train import opened
from stmoe.train import state as states


def config(**fields):
  return ml_collections.ConfigDict(dict(model=dict(name='t5', vocab_size=10, d_model=4, **fields)))


def test_an_imported_model_may_end_its_texts_elsewhere():
  upcycle.same_backbone('runs/t5', config(end_ids=(7, 9), encoder=(('d', 2),)), config(encoder=(('dm', 1),)))


def test_a_scale_of_0_is_no_missing_scale():
  join = lambda scale: upcycle._joining([None] * 2, dict(noise=0.0, granularity=1, base='first', scale=scale))
  assert [join(scale).keywords['scale'] for scale in (0.0, 2.0, None)] == [0.0, 2.0, 1.0]


def test_what_the_first_token_follows_is_the_dense_model_s():
  with pytest.raises(errors.UserError) as caught:
    upcycle.same_backbone('runs/t5', config(start_id=7), config())
  assert str(caught.value) == ('model.start_id is 7 in runs/t5 and 0 in the new model; nearest: '
                               '--config.model.start_id=7')
  upcycle.same_backbone('runs/t5', config(start_id=7), config(start_id=7))


def test_positions_are_resized_for_other_images_and_their_slots_begin_anew(pictures):
  dense, cfg = rundir.load(pictures), rundir.load(pictures)
  with cfg.unlocked():
    cfg.model.image_size = cfg.data.image_size = 12
  upcycle.same_backbone(pictures, dense, cfg)
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    own, plan = (states.blueprint(one, mesh) for one in (dense, upcycle._sized(dense, cfg)))
    vocabulary = pipeline.source(dense).info()['vocab']
    before = opened.restore(own, pictures, vocabulary, print)[1]
    after = upcycle._restored(pictures, dense, plan, vocabulary, print)[1]
    same = upcycle._restored(pictures, dense, own, vocabulary, print)[1]
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, plan.shapes)
  jax.tree.map(np.testing.assert_array_equal, before['params'], same['params'])
  old, new = (np.asarray(state['params'].pop('positions')) for state in (before, after))
  np.testing.assert_allclose(new[0, [0, 1, 6, 31, 36]], old[0, [0, 1, 4, 13, 16]], rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, before['params'], after['params'])
  slots = {name: np.asarray(after['opt_state'][name]['positions']) for name in ('mu', 'nu', 'averages')}
  np.testing.assert_array_equal(slots.pop('averages'), new)
  assert not any(map(np.any, slots.values()))
  jax.tree.map(np.testing.assert_array_equal, *(s['opt_state']['nu']['head'] for s in (before, after)))


def test_arrays_that_nothing_makes_fit_are_refused(pictures):
  dense = rundir.load(pictures)
  with states.on_mesh(dense.mesh, jax.devices()[:1]) as mesh:
    plan = states.blueprint(dense, mesh)
    state = states.init(dense, plan)
    state['params']['head']['w'] = state['params']['head']['w'][:, :3]
    with pytest.raises(errors.UserError, match=r'head/w is \(4, 3\) in runs/a .*nearest: the image_size'):
      refit.state(plan, state, 'runs/a')
