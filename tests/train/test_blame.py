"""Routers whose weights are no numbers are named, beside records that layers keep, too."""

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import experiment
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.train import blame
from stmoe.train import check
from stmoe.train import state as states


def test_a_router_is_named_whose_layers_keep_records_of_their_own():
  """The modulation of Switch-DiT records what its prior loss reads, and takes that out, and nothing else."""
  cfg = experiment.load('switch_dit/digits:smoke')[0]
  check.counts(cfg)
  mesh = axes.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state, batch = states.init(cfg, plan), check.place(next(pipeline.train_iterator(cfg)), mesh)
    wrong = lambda path, a: a * jnp.nan if "'router'" in jax.tree_util.keystr(path) else a
    state['params'] = jax.tree.map_with_path(wrong, state['params'])
    said = blame.routers(plan, state | dict(step=state['step'] + 1), batch, 1)
  assert said and all('.modulation: stmoe/routers/switch_dit.py: ' in line for line in said), said


def test_records_stand_beside_records():
  edges = dict(token=jnp.zeros((1, 2)), expert=jnp.zeros((1, 2)), weight=jnp.ones((1, 2)))
  aux = contract.Aux(losses={}, load=jnp.zeros(6), metrics={}).recorded(**{'0.edges': edges})
  both = aux.recorded(**{'1.edges': edges}, choice=jnp.zeros((1, 2)))
  assert both.edges() == [('0.edges', edges, 3), ('1.edges', edges, 3)]
  assert set(both.without('choice', 'absent').records) == {'0.edges', '1.edges'}
  assert aux.edges() == [('0.edges', edges, 6)] and not aux.without('0.edges').edges()
