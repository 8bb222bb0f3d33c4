"""A network over the columns of a table: rows and items, padding, and tables that fit it or not."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data import batches as pipeline
from stmoe.train import check
from stmoe.train import state as states
from tests.train import tiny_run

ROUTER = dict(name='switch', num_experts=4, capacity_factor=(2.0, 2.0))
BLOCKS = dict(m=dict(layer='moe', executor='einsum', group_size=None, experts=dict(name='mlp', d_ff=8),
                     router=ROUTER))


def model(**fields):
  make = lookup.recipe('model', dict(name='mlp', d_model=8, layers=(('m', 1),)) | fields)
  return make(blocks=BLOCKS, rngs=nnx.Rngs(0))


@jax.jit
def outputs(model, batch):
  return model(batch)


def test_items_of_a_row_are_tokens_with_the_same_weights_as_rows():
  made = model(num_features=3, num_outputs=2)
  x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
  items, aux = outputs(made, dict(features=x, weights=np.ones((4, 10), np.float32)))
  rows, other = outputs(made, dict(features=x.reshape(20, 3), weights=np.ones((20, 2), np.float32)))
  assert items.shape == (4, 10) and rows.shape == (20, 2) and items.dtype == jnp.float32
  assert aux['encoder_00'].load.sum() == other['encoder_00'].load.sum() == 20
  # Rows of one token never drop it; of five tokens an expert takes 2 x 5 / 4, rounded up.
  same = np.isclose(items.reshape(20, 2), rows, rtol=1e-5, atol=1e-6).all(1)
  assert same.mean() > 0.5


def test_rows_without_a_weight_are_padding_and_ids_are_added():
  made = model(num_features=3, num_ids=6)
  batch = dict(features=np.ones((2, 3), np.float32), ids=np.array([[0, 5], [1, 1]], np.int32),
               weights=np.array([[1.0], [0.0]], np.float32))
  found, aux = outputs(made, batch)
  assert aux['encoder_00'].load.sum() == 1 == made.count_tokens(batch)['encoder']
  other = outputs(made, batch | dict(ids=np.array([[5, 0], [2, 3]], np.int32)))[0]
  np.testing.assert_allclose(found[0], other[0], rtol=1e-6)          # a sum over the columns
  assert outputs(made, batch | dict(ids=np.array([[5, 1], [2, 3]], np.int32)))[0][0] != found[0]


@pytest.fixture
def config(tmp_path):
  """Returns a function of (data, loss, fields of the model) that checks a configuration abstractly."""
  rng = np.random.default_rng(0)
  np.savez(tmp_path / 'a.npz', x=rng.normal(size=(40, 4)), y=rng.normal(size=(40, 3)),
           kind=rng.integers(0, 3, 40), town=rng.integers(0, 5, 40))

  def checked(data, loss, **fields):
    data = dict(source='table', files=(str(tmp_path / 'a.npz'),), numbers=('x[4]',), shuffle=True,
                eval_split='validation', cache_dir=str(tmp_path)) | data
    one = dict(name='mlp', d_model=8, layers=(('m', 1),), num_features=4) | fields
    cfg = tiny_run.config(tmp_path, model=one, data=data, loss=dict(name=loss))
    check.counts(cfg)
    with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
      plan = states.blueprint(cfg, mesh)
      check.forward(cfg, plan)
      check.vocabulary(cfg, plan, pipeline.info(cfg)['vocab'])
  return checked


KIND, Y = dict(labels=('kind',), classes=True), dict(labels=('y[3]',))
TOWN = dict(categories=('town',), num_ids=6)


@pytest.mark.parametrize('data, loss, fields', [
    *((Y, loss, dict(num_outputs=3)) for loss in ('values', 'binary', 'ranking')),
    (KIND, 'ids', dict(num_outputs=3)),
    (KIND | TOWN, 'ids', dict(num_outputs=4, num_ids=6)),
    (KIND | TOWN | dict(numbers=()), 'ids', dict(num_outputs=3, num_ids=6, num_features=0))], ids=str)
def test_tables_are_predicted_as_numbers_or_classes(config, data, loss, fields):
  config(data, loss, **fields)


@pytest.mark.parametrize('data, loss, fields, message', [
    (Y, 'values', dict(num_outputs=2), 'nearest: model.num_outputs=3'),
    (Y, 'ids', dict(num_outputs=3), "are values; nearest: binary, ranking, values"),
    (KIND, 'values', dict(num_outputs=3), "are labels; nearest: ids"),
    (KIND, 'ids', dict(num_outputs=2), 'model.num_outputs=2, but data.files=.* has 3 ids'),
    (KIND | TOWN, 'ids', dict(num_outputs=3), 'num_ids=0, and the data have ids'),
    (KIND, 'ids', dict(num_outputs=3, num_ids=6), 'num_ids=6, and the data have no ids'),
    (KIND, 'ids', dict(num_features=0), 'nothing to predict from')], ids=str)
def test_what_does_not_fit_is_one_line(config, data, loss, fields, message):
  with pytest.raises(errors.UserError, match=message):
    config(data, loss, **fields)
