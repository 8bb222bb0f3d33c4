"""Values, yes-or-no answers and pairs by hand; parts of a batch add up; wrong shapes are one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import targets
from stmoe.targets import binary
from stmoe.targets import ids
from stmoe.targets import ranking
from stmoe.targets import teacher
from stmoe.targets import values

KINDS = dict(values=values.Values(), binary=binary.Binary(), ranking=ranking.Ranking())


def batch(yes, weights=None):
  yes = jnp.asarray(yes, jnp.float32)
  real = np.ones(yes.shape) if weights is None else weights
  return dict(values=yes, weights=jnp.asarray(real, jnp.float32))


def split_of(target, outputs, data):
  """The metrics of one batch as a whole split."""
  sums = target.judge(jnp.asarray(outputs, jnp.float32), data) | dict(weight=jnp.sum(target.weights(data)))
  return target.metrics(targets.together([jax.tree.map(np.float64, sums)]))


def test_squared_error_by_hand():
  # Errors 1, 2 and, of weight 3, 1: (1 + 4 + 3) / 5; the fourth does not count.
  data = batch([[1, 2], [3, 4]], [[1, 1], [3, 0]])
  outputs = jnp.array([[2.0, 0.0], [2.0, 9.0]])
  loss, report = KINDS['values'].loss(outputs, data, KINDS['values'].counts(data))
  assert float(loss) == float(report['loss/mse']) == pytest.approx(8 / 5)
  found = split_of(KINDS['values'], outputs, data)
  assert found['eval/loss'] == pytest.approx(1.6) and found['eval/rmse'] == pytest.approx(1.6 ** 0.5)
  assert (found['eval/loss_0'], found['eval/loss_1']) == (1, 4)      # (1 + 3) / 4, and 4 / 1


def test_tasks_count_alike_however_many_rows_they_have():
  # Task 0: three rows at p = 1/2, ln 2 each. Task 1: one row, a yes at p = 3/4.
  data = batch([[1, 1], [0, 0], [1, 0]], [[1, 1], [1, 0], [1, 0]])
  outputs = jnp.array([[0.0, np.log(3)], [0.0, 5.0], [0.0, 5.0]])
  expected = (np.log(2) + np.log(4 / 3)) / 2
  loss, _ = KINDS['binary'].loss(outputs, data, KINDS['binary'].counts(data))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  found = split_of(KINDS['binary'], outputs, data)
  np.testing.assert_allclose(found['eval/loss'], expected, rtol=1e-6)
  assert found['eval/accuracy'] == pytest.approx((1 / 3 + 1) / 2)    # a logit of 0 is a no
  assert found['eval/auc_0'] == 0.5 and 'eval/auc_1' not in found    # all equal; and a task without a no


def test_area_under_the_curve_is_that_of_all_pairs_and_adds_up_over_batches():
  rng = np.random.default_rng(0)
  yes = (rng.random((200, 2)) < [0.3, 0.05]).astype(np.float32)
  yes[0] = 1
  logits = rng.normal(size=yes.shape) * [3, 0.5] + yes
  of_pairs = [np.mean(logits[yes[:, t] > 0, None, t] > logits[yes[:, t] == 0, t]) for t in (0, 1)]
  target = KINDS['binary']
  found = split_of(target, logits, batch(yes))
  np.testing.assert_allclose([found['eval/auc_0'], found['eval/auc_1']], of_pairs, rtol=1e-12)
  assert found['eval/auc'] == pytest.approx((found['eval/auc_0'] + found['eval/auc_1']) / 2)
  judged = lambda at: target.judge(jnp.asarray(logits[at], jnp.float32), batch(yes[at]))
  parts, whole = [judged(at) for at in (np.s_[:64], np.s_[64:])], judged(np.s_[:])
  for name in ('yes', 'no', 'scores'):
    np.testing.assert_array_equal(targets.together(parts)[name].values, whole[name].values)


def test_pairs_by_hand():
  # Row 0: item 0 above items 1 and 2, which are equal. Row 1: the third item is not there.
  data = batch([[2, 1, 1], [0, 1, 5]], [[1, 1, 1], [1, 1, 0]])
  outputs = jnp.array([[1.0, 0.0, 1.0], [2.0, 0.0, 9.0]])
  assert float(KINDS['ranking'].counts(data)) == 3
  found = split_of(KINDS['ranking'], outputs, data)
  ahead = np.array([1.0, 0.0, -2.0])
  np.testing.assert_allclose(found['eval/loss'], np.mean(np.log1p(np.exp(-ahead))), rtol=1e-6)
  assert found['eval/accuracy'] == 0.5                               # in order, a tie, the wrong way round


def test_a_row_of_one_value_has_no_order():
  with pytest.raises(errors.UserError, match='loss.name=ranking compares .* nearest: loss.name=values'):
    KINDS['ranking'].judge(jnp.ones((3, 1)), batch([[2], [1], [0]]))


@pytest.mark.parametrize('kind', KINDS)
def test_parts_of_a_batch_add_up(kind):
  rng = np.random.default_rng(1)
  target = KINDS[kind]
  data = batch(rng.integers(0, 2, (8, 3)), rng.random((8, 3)) < 0.8)
  outputs = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
  counts = target.counts(data)
  whole = target.loss(outputs, data, counts)
  parts = [target.loss(outputs[at], {name: x[at] for name, x in data.items()}, counts)
           for at in (np.s_[:2], np.s_[2:])]
  jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, sum(b), rtol=1e-5), whole, *parts)
  judged = split_of(target, outputs, data)
  np.testing.assert_allclose(judged['eval/loss'], whole[0], rtol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_without_targets_is_finite(kind):
  target, data = KINDS[kind], batch([[1, 0]], [[0, 0]])
  value, grad = jax.value_and_grad(lambda x: target.loss(x, data, target.counts(data))[0])(jnp.ones((1, 2)))
  assert value == 0 and not grad.any()


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_of_another_shape_are_one_line(kind):
  target, data = KINDS[kind], batch(np.ones((4, 3)))
  with pytest.raises(errors.UserError, match=r'shape \[4, 1\].*values of \[4, 3\].*num_outputs=3'):
    target.loss(jnp.ones((4, 1)), data, target.counts(data))


def test_every_kind_says_what_it_is():
  for name in lookup.available('target'):
    made = lookup.constructor('target', name)
    first = {part: next(m for m in made.measures if m.startswith(part)) for part in ('loss/', 'eval/')}
    assert first['eval/'] == 'eval/loss' and made.measures['eval/loss'].better == 'lower', name


def test_ids_of_a_row_have_entries_of_their_own():
  logits = jnp.log(jnp.array([[[0.25, 0.75]], [[0.5, 0.5]]]))        # [2, 1, 2]
  data = dict(labels=jnp.array([[1], [0]]), weights=jnp.array([[1], [0]]))
  np.testing.assert_allclose(ids.Ids().judge(logits, data)['ce'], -np.log(0.75), rtol=1e-6)


def test_distances_of_states_by_hand():
  x, y = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), jnp.array([[3.0, 2.0], [-2.0, 0.0], [1.0, 1.0]])
  np.testing.assert_allclose(teacher.squared(x, y), [2.0, 4.5, 1.0])
  np.testing.assert_allclose(teacher.cosine(x, y), [1 - 17 / (5 * 13 ** 0.5), 2.0, 1.0], rtol=1e-6)
  for distance in teacher.DISTANCES.values():
    np.testing.assert_allclose(distance(x[:2], x[:2]), 0.0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x, of=distance: jnp.sum(of(x, x + y)))(jnp.zeros((3, 2)))).all()


def test_a_teacher_may_be_heard_on_its_largest_entries_alone():
  data = dict(decoder_target_tokens=jnp.zeros((1, 2), jnp.int32), decoder_loss_weights=jnp.ones((1, 2)))
  mine = jnp.array([[[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]])
  data[targets.OUTPUTS] = jnp.log(jnp.array([[[0.6, 0.3, 0.1], [0.1, 0.6, 0.3]]]))
  target = teacher.Teacher(inner=ids.Ids, top=2, weight=1.0)
  # Among the first two, 2/3 and 1/3 against softmax(0, 1), then 2/3 and 1/3 against 1/2.
  p, q = np.array([2 / 3, 1 / 3]), np.array([[1, np.e], [1, 1]])
  q = q / q.sum(1, keepdims=True)
  loss, _ = target.loss(mine, data, target.counts(data))
  np.testing.assert_allclose(loss, (p * (np.log(p) - np.log(q))).sum() / 2, rtol=1e-5)


def test_weights_of_tasks_fall_by_the_epoch():
  data, outputs = batch([[1, 1], [0, 0]]), jnp.array([[1.0, 2.0], [0.5, -1.0]])
  each = np.mean(binary.log_loss(outputs, data['values']), axis=0)
  target = binary.Binary(task_weights=(2.0, 1.0), decays=(0.5, 1.0), epoch=10)
  loss = lambda step: targets.at(target, jnp.int32(step)).loss(outputs, data, target.counts(data))[0]
  np.testing.assert_allclose(loss(9), 2 * each[0] + each[1], rtol=1e-6)
  np.testing.assert_allclose(loss(25), 0.5 * each[0] + each[1], rtol=1e-6)
  assert split_of(target, outputs, data)['eval/loss'] == pytest.approx(float(2 * each[0] + each[1]))
  with pytest.raises(errors.UserError, match='there are 2 for 3 tasks'):
    target.loss(jnp.ones((1, 3)), batch([[1, 0, 1]]), target.counts(batch([[1, 0, 1]])))
  with pytest.raises(errors.UserError, match='there are 1, and 2 task_weights'):
    binary.Binary(task_weights=(1.0, 1.0), decays=(0.5,))


def test_areas_by_user():
  """User 0: 1; user 1: 0, and twice the rows; user 2 has no no. A score of the user alone orders nobody."""
  data = batch([[1], [0], [1], [0], [1], [0], [1]]) | dict(group=jnp.array([0, 0, 1, 1, 1, 1, 2]))
  outputs = jnp.array([[2.0], [1.0], [0.0], [3.0], [0.0], [3.0], [5.0]])
  found = split_of(KINDS['binary'], outputs, data)
  assert found['eval/gauc'] == pytest.approx(2 / 6) and found['eval/uauc'] == 0.5
  alone = split_of(KINDS['binary'], data['group'][:, None], data)
  assert alone['eval/gauc'] == alone['eval/uauc'] == 0.5 and alone['eval/auc'] > 0.5


def test_areas_of_parts_of_the_rows():
  data = batch([[1], [0], [1], [0]]) | dict(part=jnp.array([0, 0, 3, 3]))
  found = split_of(KINDS['binary'], jnp.array([[2.0], [1.0], [0.0], [4.0]]), data)
  assert (found['eval/auc_part_0'], found['eval/auc_part_3'], found['eval/auc']) == (1.0, 0.0, 0.25)
