"""Which fields of a dense model may differ from those of the model that it is to become."""

import ml_collections
import pytest

from stmoe import errors
from stmoe.derive import upcycle


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
