"""Slimmed experts: units that do nothing go without a change, each expert keeps its own; heads in groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import layout
from stmoe.surgery import slim_moe
from stmoe.surgery import sparse
from tests.surgery import trained

GLU = dict(name='glu', d_ff=6, multiplicative_bias=True)
LORA = dict(name='lora', d_ff=6, rank=2)
IDLE = np.array([[0, 1, 2], [3, 4, 5], [0, 2, 4], [1, 3, 5]])        # units [E, 3] that nothing reads


def idle(params):
  """`params` in which the units IDLE of every expert are not read."""
  made = {}
  for block in (1, 3):
    path = ('decoder', 'layers', block, 'layer', 'experts', 'wo')
    wo = np.array(layout.at(params, path))
    wo[np.arange(4)[:, None], IDLE] = 0
    made[path] = jnp.asarray(wo)
  return sparse.replaced(params, made)


def slopes(params, cfg):
  """What a calibration has: a slope for every unit of every array, theta times a gradient that is random."""
  rng = np.random.default_rng(0)

  def calibration(*names):
    assert names == ('slopes',)
    found = {}
    for layer in sparse.found(cfg):
      for units in slim_moe.units_of(layer):
        for path, axis in units.items():
          array = np.asarray(layout.at(params, (*layer.path, 'experts', *path)), np.float64)
          keep = {axis, 0} if 'expert' in layer.axes('experts')[path][0] else {axis}
          summed = (array * rng.normal(size=array.shape)).sum(tuple({*range(array.ndim)} - keep))
          found['/'.join(map(str, (*layer.path, 'experts', *path)))] = dict(slopes=summed)
    return found
  return calibration


@pytest.mark.parametrize('experts, by', [
    pytest.param(trained.MLP, 'activation', marks=pytest.mark.slow), (GLU, 'activation'),
    pytest.param(GLU, 'loss', marks=pytest.mark.slow)])
def test_units_that_nothing_reads_go_without_a_change(experts, by):
  cfg = trained.config(experts)
  params = idle(trained.params(cfg))
  calibration = trained.calibration(hidden_squares=np.ones((4, 6)), tokens=2)
  if by == 'loss':                       # a unit's slope is that of the weights that read it
    def calibration(*names):
      of = lambda path, array: np.square(np.asarray(array, np.float64)).sum(-1) if path[-1] == 'wo' else (
          np.zeros((4, 6)))
      return {'/'.join(map(str, (*layer.path, 'experts', *path))): dict(slopes=of(path, array))
              for layer in sparse.found(cfg) for path, array in layer.owned(params).items()}
  made, changes = slim_moe.operate(params, cfg, calibration, by=by)
  assert changes == {'blocks.m.experts.d_ff': 3}
  assert made['decoder']['layers'][1]['layer']['experts']['wi'].shape[-1] == 3
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), made), trained.logits(cfg, params),
                             rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('experts', [
    LORA, pytest.param(dict(name='residual', d_ff=6, num_sublayers=2), marks=pytest.mark.slow)])
def test_units_of_parts_are_cut_alike(experts):
  cfg = trained.config(experts, layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = slim_moe.operate(params, cfg, slopes(params, cfg))
  assert np.isfinite(trained.logits(sparse.changed(cfg, changes), made)).all()
  bank, old = (p['decoder']['layers'][1]['layer']['experts'] for p in (made, params))
  if experts is LORA:                    # the units that all experts share: one choice for all arrays
    [stay] = {tuple(int(np.flatnonzero((np.asarray(old['wi']['w']).T == column).all(1))[0])
                    for column in np.asarray(bank['wi']['w']).T)}
    np.testing.assert_array_equal(bank['wo']['a'], np.asarray(old['wo']['a'])[:, list(stay)])
    np.testing.assert_array_equal(bank['wi']['a'], old['wi']['a'])


@pytest.mark.slow
@pytest.mark.parametrize('rest', [0, 2])
def test_heads_go_in_groups(rest):
  """With norms of each head, which stay whole; of a head of 4 + `rest` numbers, 4 are turned."""
  attention = dict(name='attention', nope_dim=rest, qk_norm=1e-5, qk_norm_over='head') if rest else None
  cfg = trained.config(num_heads=4, num_kv_heads=2, head_dim=4, layers=(('dm', 1),), attention=attention)
  group = 2 * (4 + rest)
  params = trained.params(cfg)
  made = {('decoder', 'layers', n, 'attention', 'wo'): params['decoder']['layers'][n]['attention']['wo'].at[
      slice(group * n, group * n + group)].set(0) for n in (0, 1)}   # group 0 of block 0, group 1 of block 1
  params = sparse.replaced(params, made)
  calibration = lambda *names: {'/'.join(map(str, path)): dict(slopes=np.square(np.asarray(wo)).sum(1))
                                for path, wo in made.items()}
  after, changes = slim_moe.operate(params, cfg, calibration, keep=1.0, heads=0.5)
  assert changes == {'model.num_heads': 2, 'model.num_kv_heads': 1}
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), after), trained.logits(cfg, params),
                             rtol=1e-5, atol=1e-5)


def test_sinks_go_with_their_heads():
  cfg = trained.config(num_heads=4, num_kv_heads=2, head_dim=4, layers=(('dm', 1),),
                       attention=dict(name='attention', sinks=True))
  params = trained.params(cfg)
  made = {('decoder', 'layers', n, 'attention', 'wo'): params['decoder']['layers'][n]['attention']['wo'].at[
      slice(8 * n, 8 * n + 8)].set(0) for n in (0, 1)}               # group 0 of block 0, group 1 of block 1
  params = sparse.replaced(params, made)
  calibration = lambda *names: {'/'.join(map(str, path)): dict(slopes=np.square(np.asarray(wo)).sum(1))
                                for path, wo in made.items()}
  after, changes = slim_moe.operate(params, cfg, calibration, keep=1.0, heads=0.5)
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), after), trained.logits(cfg, params),
                             rtol=1e-5, atol=1e-5)


def test_mistakes_are_one_line():
  def refused(cfg, calibration=trained.none, **fields):
    with pytest.raises(errors.UserError) as caught:
      slim_moe.operate(trained.params(cfg), cfg, calibration, **fields)
    assert '\n' not in str(caught.value)
    return str(caught.value)
  assert 'no entries of its arrays; nearest' in refused(trained.config(dict(name='mpo', d_ff=8, parts=1)))
  assert 'nearest: by=loss' in refused(trained.config(LORA), by='activation')
  cfg = trained.config()
  nothing = lambda *names: {key: dict(slopes=0 * value['slopes'])
                            for key, value in slopes(trained.params(cfg), cfg)(*names).items()}
  assert 'no slope in blocks.m; nearest: by=activation' in refused(cfg, nothing)
