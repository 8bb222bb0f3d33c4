"""MixER's gate: what it reports, when it is renewed, and what it remembers where it is not."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import contract
from stmoe.core.units import kmeans
from stmoe.routers import mixer

# Four environments in two clusters; expert 1 is best for the first, expert 0 for the second.
CONTEXTS = jnp.array([[1.0, 0.0], [1.1, 0.1], [-1.0, 0.0], [-0.9, 0.1]])
ERRORS = jnp.array([[5.0, 1.0], [5.0, 1.0], [1.0, 4.0], [1.0, 4.0]])


def built(**fields):
  return mixer.Mixer(2, num_experts=2, num_environments=4, noise=0.0, rngs=nnx.Rngs(0), **fields)


@jax.jit
def routed(router, x, ctx, carry):
  return router(x, ctx, carry)


def report(router, step=0, rows=slice(None), train=True):
  """The Aux of `router` for some of the environments, each a token."""
  x, number = CONTEXTS[rows][None], jnp.arange(4)[rows][None]
  ctx = contract.Context(**contract.numbered(jnp.ones(x.shape[:2], bool)), step=jnp.int32(step),
                         tokens=jnp.float32(x.shape[1]), train=train,
                         given=dict(environment=number, errors=ERRORS[rows][None]))
  return routed(router, x, ctx, {})


def start(router):
  """Gives the router centroids on both sides."""
  router.centroids[...], router.known[...] = jnp.array([[0.5, 0.0], [-0.5, 0.0]]), jnp.float32(1)
  return router


def test_a_fitted_gate_sends_clusters_to_their_experts():
  router = start(built())
  router.commit(report(router).aux)
  assert (float(router.tried[...]), float(router.accepted[...]), float(router.known[...])) == (1, 1, 1)
  probs = report(router, train=False).assignment.masks()[1].sum(-1)[0]
  assert jnp.argmax(probs, -1).tolist() == [1, 1, 0, 0]


def test_parts_of_a_batch_and_absent_environments():
  """Two halves are the whole; environments that are in no batch count for nothing."""
  router = start(built())
  whole = report(router).aux.statistics
  halves = [report(router, rows=rows).aux.statistics for rows in (slice(0, 2), slice(2, 4))]
  joined = jax.tree.map(lambda *parts: jnp.stack(parts), *halves)
  for name, statistic in whole.items():
    np.testing.assert_array_equal(joined[name].together().value, statistic.value)
  router.commit(report(router, rows=slice(0, 2)).aux)                # a cluster stays empty
  assert (float(router.tried[...]), float(router.accepted[...])) == (1, 0)


def test_a_skipped_update_forgets_centroids_and_keeps_the_gate():
  router = built()
  router.centroids[...], router.known[...] = jnp.array([[9.0, 9.0], [0.0, 0.0]]), jnp.float32(1)
  gate = np.asarray(router.gate[...])
  router.commit(report(router).aux)
  np.testing.assert_array_equal(gate, router.gate[...])
  assert float(router.known[...]) == 0


def test_every_and_never():
  router = start(built(every=3))
  for step, tried in ((0, 0), (1, 0), (2, 1), (3, 1)):
    router.commit(report(router, step).aux)
    assert float(router.tried[...]) == tried
  assert not report(built(every=0)).aux.statistics


def test_ties_go_to_both():
  router = built()
  router.gate[...] = jnp.zeros_like(router.gate[...])
  a = report(router, train=False).assignment
  assert a.masks()[1].sum(-1)[0].tolist() == [[1, 1]] * 4


def test_experts_without_numbers_come_last():
  assert kmeans.experts(jnp.array([[jnp.nan, 2.0], [1.0, 2.0]])).tolist() == [1, 0]
