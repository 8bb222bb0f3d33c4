"""Factored experts: the same function at the start, the best low rank, and rows of the rest to be pruned."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import mc_smoe
from stmoe.surgery import sparse
from tests.surgery import trained


@pytest.mark.parametrize('experts', [trained.MLP, dict(name='glu', d_ff=6, limit=2.0)])
def test_the_start_computes_what_the_matrices_did(experts):
  cfg = trained.config(experts)
  params = trained.params(cfg)
  made, changes = mc_smoe.operate(params, cfg, trained.none, keep=0.2, rank=2, before=3, after=5)
  pruned = dict(kept=0.2, before=3, after=5, every=1, memory=0.85)
  assert changes['groups'] == dict(sparse=dict(pruned=pruned))
  new = sparse.changed(cfg, {key: value for key, value in changes.items() if key != 'groups'})
  np.testing.assert_allclose(trained.logits(new, made), trained.logits(cfg, params), rtol=1e-5, atol=1e-5)
  bank, before = (p['decoder']['layers'][1]['layer']['experts'] for p in (made, params))
  for expert in range(trained.E):                                    # U V alone is the best of its rank
    wi = {name: array[expert] for name, array in bank['wi'].items()}
    values = np.linalg.svd(before['wi'][expert], compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(wi['s']), np.linalg.norm(values[2:]), rtol=1e-4)
    assert np.linalg.matrix_rank(wi['u'] @ wi['v'], tol=1e-3) == 2


def test_a_rank_is_not_rounded_up_for_the_rounding_of_floats():
  assert 0.07 * 200 * 200 / 400 > 7
  assert mc_smoe.rank_of(200, 200, 0.07) == 7 and mc_smoe.rank_of(200, 200, 0.071) == 8


def test_nothing_is_pruned_where_all_is_kept_and_other_groups_stay():
  cfg = trained.config()
  assert 'groups' not in mc_smoe.operate(trained.params(cfg), cfg, trained.none, keep=1.0)[1]
  cfg = sparse.changed(cfg, dict(groups=dict(router=dict(train=False), sparse=dict(rate=0.5))))
  groups = mc_smoe.operate(trained.params(cfg), cfg, trained.none)[1]['groups']
  assert groups['router'] == dict(train=False) and groups['sparse']['rate'] == 0.5
  assert groups['sparse']['pruned']['kept'] == 0.1


@pytest.mark.parametrize('experts, fields, words', [
    (trained.MLP, dict(rank=9), ['rank=9', 'blocks.m', 'nearest: rank=6']),
    (dict(name='lora', d_ff=6, rank=2), {}, ['blocks.m.experts is lora', "'mlp', and 'glu'"]),
    (dict(name='low_rank', d_ff=6, rank=2), {}, ['blocks.m.experts is low_rank of wi.u, wi.v']),
    (dict(name='glu', d_ff=6, multiplicative_bias=True), {}, ['glu of b, wg, wi, wo', 'without mult'])])
def test_what_cannot_be_factored_is_one_line(experts, fields, words):
  cfg = trained.config(experts)
  with pytest.raises(errors.UserError) as caught:
    mc_smoe.operate(trained.params(cfg), cfg, trained.none, **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
