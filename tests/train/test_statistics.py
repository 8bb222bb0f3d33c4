"""Statistics that `commit` reads, and what is given beside a batch, by a router of moving averages.

The router is one file, in a folder of its own. Its state is the same for any microbatches and devices.
"""

import sys

import numpy as np
import pytest

import stmoe.routers
from tests.train import test_step
from tests.train import tiny_run

ROUTER = '''"""Top-1 by prototypes, the moving means of an expert's tokens; domains prefer experts."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics


class Prototype(nnx.Module):
  """Losses: none. State: prototypes f32[E,D], largest f32[], seen f32[E]."""

  def __init__(self, d_model, *, num_experts, rngs):
    self.num_experts = num_experts
    start = jax.random.normal(rngs.params(), (num_experts, d_model))
    self.prototypes = axes.state(start, 'unmodeled', 'embed')
    self.largest = axes.state(jnp.float32(0))
    self.seen = axes.state(jnp.zeros(num_experts), 'unmodeled')

  def __call__(self, x, ctx, carry):
    x = x.astype(jnp.float32)
    logits = jnp.einsum('gsd,ed->gse', x, self.prototypes[...]) + 3 * jax.nn.one_hot(
        ctx.given['domain'], self.num_experts) + ctx.given['hint'][..., None] * jnp.arange(self.num_experts)
    edges = assignment.kill_padding(assignment.from_top_k(jax.nn.softmax(logits), 1), ctx.mask)
    a = assignment.cap(edges, x.shape[1])
    own = jax.nn.one_hot(edges.expert, self.num_experts)               # [G, S, E]
    fixed = jax.lax.stop_gradient(x)
    statistics = dict(
        centre=contract.mean(jnp.einsum('gse,gsd->ed', own, fixed), own.sum((0, 1))[:, None]),
        largest=contract.largest(jnp.max(jnp.where(ctx.mask[..., None], jnp.abs(fixed), 0))),
        seen=contract.total(own.sum((0, 1))))
    return contract.Routed(a, contract.Aux(losses={}, load=metrics.load(edges), metrics={},
                                           statistics=statistics), carry)

  def commit(self, aux):
    now = {name: statistic.value for name, statistic in aux.statistics.items()}
    self.prototypes[...] = 0.5 * self.prototypes[...] + 0.5 * now['centre']
    self.largest[...] = jnp.maximum(self.largest[...], now['largest'])
    self.seen[...] += now['seen']
'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('routers')
  (path / 'prototype.py').write_text(ROUTER, encoding='utf-8')
  kept, stmoe.routers.__path__ = stmoe.routers.__path__, [*stmoe.routers.__path__, str(path)]
  yield path
  stmoe.routers.__path__ = kept
  sys.modules.pop('stmoe.routers.prototype', None)


def batch(seed):
  hint = np.random.default_rng(seed).normal(size=(8, 32)).astype(np.float32)
  return test_step.batch(seed=seed) | {'given/domain': np.arange(8, dtype=np.int32) % 4,
                                       'decoder_given/hint': hint}


def state(folder, devices=1, **changed):
  router = dict(name='prototype', num_experts=4)
  cfg = tiny_run.config(folder, **{'losses': {}, 'model.layers': (('m', 1),), **changed})
  with cfg.unlocked():
    cfg.blocks.m.router = router
  made = test_step.run(cfg, [batch(seed) for seed in range(2)], devices)[0]
  return made['router_state']['decoder']['segments'][0]['blocks'][0]['layer']['router']


def test_the_same_state_for_any_microbatches_and_devices(folder):
  whole = state(folder)
  real = sum(int((batch(seed)['decoder_segment_ids'] > 0).sum()) for seed in range(2))
  assert whole['seen'].sum() == real and whole['largest'] > 0
  for devices, changed in ((1, {'train.microbatches': 4}), (8, {'mesh.expert': 4})):
    other = state(folder, devices, **changed)
    np.testing.assert_array_equal(other['seen'], whole['seen'])
    np.testing.assert_allclose(other['prototypes'], whole['prototypes'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other['largest'], whole['largest'], rtol=1e-5)
