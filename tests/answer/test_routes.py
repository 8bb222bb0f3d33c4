"""Routes through big and small modules: cached trials against whole forwards, and what a search says."""

from flax import nnx
import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.analysis.routing import oracle
from stmoe.answer import routes
from tests.models import tiny


def model(layers=2):
  block = dict(layer='moe', executor='einsum', virtual=(dict(name='small', d_ff=2), 'zero'),
               experts=dict(name='glu', d_ff=8, init_scale=1.0), router=dict(name='duo_llm'))
  made = lookup.recipe('model', dict(name='lm', layers=(('m', layers),), **tiny.SHAPES))(
      blocks=dict(m=block), rngs=nnx.Rngs(0))
  nnx.update(made, jax.tree.map(lambda a: 3 * a, nnx.state(made, nnx.Param)))      # so that routes differ
  return made


@pytest.mark.slow
def test_a_token_that_tries_the_route_of_all_others_has_their_loss():
  made, batch = model(), tiny.batch('lm', 2, 5)
  routed = modules.wrapped(made, lookup.constructor('router', 'route'))
  every = oracle.routes(*routes.size(made))
  row = {name: a[:1] for name, a in batch.items()}
  whole = np.asarray(routes.losses_of_patterns(routed, row, every[:, None, None]))[:, 0]           # [R, T]
  table = np.asarray(routes.losses_of_routes(routed, row, every, every[4]))        # [T, R]
  np.testing.assert_allclose(table[:, 4], whole[4], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(table[0], whole[:, 0], rtol=1e-4, atol=1e-4)
  # Nothing is before the first token, and others' routes are not the token's.
  assert np.abs(table[1:] - whole[:, 1:].T).max() > 1e-2
  found = routes.of_model(made, batch, draws=3)
  budgets = found['budgets']
  assert found['tokens'] == 10 and len(budgets) == 3 and np.isfinite(found['learned'])
  assert [one['at_most'] for one in budgets] == sorted((one['at_most'] for one in budgets), reverse=True)
  # Of one route the token before has that one, too; of several its route is another token's.
  rows = [{name: a[i:i + 1] for name, a in batch.items()} for i in range(2)]
  table = np.concatenate([np.asarray(routes.losses_of_routes(routed, row, every, every[0]))[1:]
                          for row in rows])
  assert budgets[2]['before'] == pytest.approx(table[:, 0].mean(), rel=1e-4)
  assert budgets[1]['before'] > oracle.best(table, every).loss_exact[1].mean()
  assert budgets[2]['fixed'] == pytest.approx(budgets[2]['random'], rel=1e-5)      # there is one route
  assert budgets[0]['big_share'] == [0, 0] and budgets[2]['big_share'] == [1, 1]


def test_a_model_of_other_modules_is_one_line():
  with pytest.raises(errors.UserError, match='one big module and virtual ones'):
    routes.size(nnx.merge(*tiny.build('heads')))
  with pytest.raises(errors.UserError, match='13 layers of 3 modules have 1,594,323 routes, more than 4,096'):
    routes.size(nnx.eval_shape(lambda: model(13)))
