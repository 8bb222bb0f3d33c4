"""Union of Experts: who selects whom, by hand; leaks; what trains the gate. Its numbers: tests/oracles."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import sequence_selection
from stmoe.routers import union_of_experts

# Scores of three experts, of which a token has the two best.
PROBS = [[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.5, 0.4], [0.25, 0.15, 0.6]]]
MASK = np.ones((1, 4), bool)


def router(d_model=3, kind=union_of_experts.UnionOfExperts, **fields):
  return kind(d_model, num_experts=3, rngs=nnx.Rngs(0), **fields)


def rows(a):
  """The (token, expert, weight) of live edges, sorted."""
  each = zip(a.token[0].tolist(), a.expert[0].tolist(), a.weight[0].tolist())
  return sorted((t, e, round(w, 3)) for t, e, w in each if e < a.num_experts)


def test_experts_take_their_best_tokens_and_fill_up_with_first_ones():
  logits = jnp.log(jnp.array(PROBS))
  a, aux = union_of_experts.union_of_experts(logits, MASK, 2, 3, over='none', gate='multiply')
  # Expert 1 was scored by tokens 0 and 2; token 1, the first other one, fills it up.
  assert rows(a) == [(0, 0, 0.5), (0, 1, 0.3), (1, 0, 0.6), (1, 1, 0.0), (1, 2, 0.3), (2, 1, 0.5),
                     (2, 2, 0.4), (3, 0, 0.25), (3, 2, 0.6)]
  np.testing.assert_allclose(aux.metrics['filled_frac'], 1 / 9, rtol=1e-6)
  assert aux.load.tolist() == [3, 3, 3] and a.rows_per_group == 9
  causal, aux = union_of_experts.union_of_experts(logits, MASK, 2, None, gate='none')
  assert [row[:2] for row in rows(causal)][:6] == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2, 2)]
  assert {row[2] for row in rows(causal)} == {1.0} and aux.metrics['filled_frac'] == 0


def test_weights_of_every_gate_and_their_gradients():
  def weights(logits, gate):
    return union_of_experts.union_of_experts(logits, MASK, 2, None, over='experts', gate=gate)[0].weight
  logits = jnp.log(jnp.array(PROBS))
  moved = lambda gate: jnp.abs(jax.jacobian(weights)(logits, gate)).sum()
  assert set(weights(logits, 'none')[0].tolist()) == {1.0} and moved('none') == 0
  np.testing.assert_allclose(weights(logits, 'multiply')[0, :2], [0.5 / 0.8, 0.6 / 0.9], rtol=1e-6)
  np.testing.assert_allclose(weights(logits, 'straight'), 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(moved('straight'), moved('multiply'), rtol=1e-6)
  assert moved('straight') > 0.1
  assert not jax.tree.leaves(nnx.state(router(), nnx.Param))         # nothing trains it: constants


def test_data_selection_leaks_and_causal_selection_does_not(context, call):
  """Claim d of the notes: what the last token changes for earlier ones, of a router whose scores differ."""
  x = jax.random.normal(jax.random.key(0), (1, 8, 3))
  late = x.at[:, -1].add(3.0)
  ctx = context(np.ones((1, 8), bool))
  changed = {}
  for select in ('data', 'causal'):
    made = router(select=select, k=1, share=0.25, over='none')
    made.w[...] = 3 * jax.random.normal(jax.random.key(1), made.w.shape)
    a, b = (call(made, given, ctx).assignment.masks()[1].sum(-1)[:, :-1] for given in (x, late))
    changed[select] = int(jnp.sum(jnp.any(a != b, axis=-1)))
  assert changed['data'] > 0 and changed['causal'] == 0


def test_a_sequence_chooses_its_experts_and_a_short_one_is_filled_with_zeros(context, call):
  x = jax.random.normal(jax.random.key(0), (2, 4, 3))
  made = router(kind=sequence_selection.SequenceSelection, length=5, k=1)
  made.w[...] = jax.random.normal(jax.random.key(1), made.w.shape)
  routed = call(made, x, context(np.ones((2, 4), bool)))
  wanted = jnp.argmax(jnp.einsum('bsd,sde->be', x, made.w[...].reshape(5, 3, 3)[:4]), axis=-1)
  np.testing.assert_array_equal(routed.assignment.expert, jnp.repeat(wanted[:, None], 4, axis=1))
  with pytest.raises(errors.UserError, match='length=5, but 6 tokens are routed together; nearest: length=6'):
    made(jnp.ones((1, 6, 3)), context(np.ones((1, 6), bool)), {})


def test_mistakes_are_one_line(context):
  with pytest.raises(errors.UserError, match="over='batch' with gate='multiply' .* nearest: over='experts'"):
    router(select='causal', over='batch', gate='multiply')
  with pytest.raises(errors.UserError, match='k=4 with num_experts=3'):
    router(k=4)
  with pytest.raises(errors.UserError, match="nearest: select='causal' .or allow_causal=True"):
    router()(jnp.ones((1, 2, 3)), context(np.ones((1, 2), bool), causal=True), {})
