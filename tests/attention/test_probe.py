"""An attention that routes is one file: it trains, reports and decodes, and nothing else is edited."""

import json
import sys

import jax
import numpy as np
import pytest

import stmoe.attention
from stmoe import errors
from stmoe import sections
from stmoe.train import loop
from tests.parts import test_cache
from tests.train import tiny_run

PROBE = '''"""Attention whose output matrix is one of several, chosen by a router."""

from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import checked
from stmoe.experts import linear
from stmoe.layers import moe


class Probe(attention.Attention):
  """sum_e g_e a O_e, with a the heads side by side."""

  def __init__(self, d_model, *, router: ranges.Named('router'), num_heads, head_dim, dropout_rate=0.0,
               init_scale=1.0, rngs):
    super().__init__(d_model, num_heads=num_heads, head_dim=head_dim, rngs=rngs)
    self.router = checked.built(router, d_model, rngs)
    self.experts = linear.Linear(d_model, num_experts=self.router.num_experts, d_ff=d_model, rngs=rngs)
    self.d_model, self.group_size, self.executor = d_model, None, 'einsum'

  def __call__(self, x, ctx, carry):
    a, _, carry = super().__call__(x, ctx, carry)
    groups, size, execute = moe.grouping(self, ctx, *x.shape[:2])
    regroup = lambda y: y.reshape(groups, size, -1)
    routed = checked.route(self.router, regroup(x), ctx.fold('router').group(groups, size), {})
    return execute(regroup(a), routed.assignment, self.experts).reshape(x.shape), routed.aux, carry
'''


@pytest.fixture
def probe(tmp_path, monkeypatch):
  (tmp_path / 'probe.py').write_text(PROBE, encoding='utf-8')
  monkeypatch.setattr(stmoe.attention, '__path__', [*stmoe.attention.__path__, str(tmp_path)])
  yield dict(name='probe', router=dict(name='st_moe', num_experts=3))
  sys.modules.pop('stmoe.attention.probe', None)


def config(folder, attention):
  cfg = tiny_run.config(tiny_run.write_corpus(folder), **{
      'model.layers': (('d', 1),), 'train.steps': 2, 'train.log_every': 1, 'train.stats_every': 2,
      'eval.every': 2, 'eval.batches': 1, 'checkpoint.every': 2})
  with cfg.unlocked(), cfg.ignore_type():
    cfg.blocks.d.attention = attention
  return cfg


@pytest.mark.slow
def test_it_trains_and_reports(tmp_path, probe):
  cfg, path = config(tmp_path, probe), tmp_path / 'run'
  sections.check(cfg)
  assert loop.train(cfg, path, 'probe', jax.devices()[:1]) == 0
  first, last = map(json.loads, (path / 'metrics.jsonl').read_text().splitlines())
  assert {'moe/decoder_00.attention/max_load_ratio', 'moe/drop_frac', 'loss/aux_balance'} <= set(last)
  weighted = cfg.losses.balance[0] * first['loss/aux_balance'] + cfg.losses.z[0] * first['loss/router_z']
  assert weighted > 0
  np.testing.assert_allclose(first['loss/total'], first['loss/ce'] + first['loss/z'] + weighted, rtol=1e-6)
  with np.load(path / 'router_stats' / '2.npz') as stats:
    assert stats['layers'].tolist() == ['decoder_00.attention'] and stats['moe_load'].sum() >= 8 * 32


def test_it_decodes_with_its_cache(probe):
  block = test_cache.DENSE | dict(attention=probe)
  test_cache.assert_cached_equals_whole('lm', test_cache.build('lm', block))


def test_its_mistakes_are_named(tmp_path, probe):
  with pytest.raises(errors.UserError, match="no attention is called 'prob'; nearest: probe"):
    sections.check(config(tmp_path, probe | dict(name='prob')))
  with pytest.raises(errors.UserError, match="attention 'probe' has no field 'rooter'; nearest: router"):
    sections.check(config(tmp_path, probe | dict(rooter=1)))
