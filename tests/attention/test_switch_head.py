"""SwitchHead: what its routers decide and commit, and the model around it. Its numbers: tests/oracles."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.analysis import flops
from stmoe.analysis.routing import choices
from stmoe.attention import switch_head
from stmoe.core import metrics
from stmoe.train import state as states
from tests.attention import calls
from tests.train import test_step

HEADS, EXPERTS = 2, 3
SIGMA = dict(name='sigma_moe', num_experts=EXPERTS, k=2)


def per_head(router):
  return switch_head.PerHead(lookup.recipe('router', router), 8, HEADS, nnx.Rngs(0))


@pytest.mark.slow
def test_every_head_chooses_among_its_own_experts_and_drops_its_own():
  router = per_head(dict(name='switch', num_experts=EXPERTS, capacity_factor=(0.5, 0.5), min_capacity=1))
  router.heads.w[...] *= 30
  x = jax.random.normal(jax.random.key(1), (2, 6, 8))
  routed = router(x, calls.context(2, 6), {})
  dispatch, combine = routed.assignment.masks()                      # [G, S, H*E, C]
  assert router.num_experts == HEADS * EXPERTS and router.k == HEADS
  assert dispatch.reshape(2, 6, HEADS, -1).sum(-1).max() == 1        # at most one expert of a head
  assert 0 < dispatch.sum() < 2 * 6 * HEADS
  assert routed.aux.load.shape == (6,) and routed.aux.load.sum() == 2 * 6 * HEADS
  # The same as edges of (token, head): only the head's own experts.
  apart = switch_head.of_heads(routed.assignment, HEADS).masks()[1].reshape(2, 6, HEADS, HEADS, EXPERTS, -1)
  combine = combine.reshape(2, 6, HEADS, EXPERTS, -1)
  for h in range(HEADS):
    np.testing.assert_array_equal(apart[:, :, h, h], combine[:, :, h])
    assert not apart[:, :, h, 1 - h].any()


def test_the_router_of_every_head_commits_its_own_load():
  router = per_head(dict(name='loss_free_balancing', num_experts=EXPERTS, rate=0.5))
  routed = router(jnp.ones((1, 4, 8)), calls.context(1, 4), {})
  load = jnp.array([9.0, 0.0, 0.0, 0.0, 0.0, 9.0])
  modules.commit(router, routed.aux.replace(load=load))
  np.testing.assert_array_equal(np.sign(router.heads.bias[...]), [[-1, 1, 1], [1, 1, -1]])


def test_metrics_of_microbatches_are_those_of_the_batch():
  """The largest logit is that of all heads: a mean of their maxima is another one for parts of a batch."""
  router, x = per_head(SIGMA), jax.random.normal(jax.random.key(1), (2, 6, 8))
  told = lambda x: router(x, calls.context(len(x), 6), {}).aux
  whole, parts = told(x), [told(x[:1]), told(x[1:])]
  merged = metrics.merge(jax.tree.map(lambda *parts: jnp.stack(parts), *parts))
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(merged.metrics[name], value, rtol=1e-5, err_msg=name)
  logits = jnp.einsum('gsd,hde->hgse', x, router.heads.w[...], precision='highest')
  np.testing.assert_allclose(whole.metrics['router_logit_max'], jnp.abs(logits).max(), rtol=1e-6)


def config(path, **changed):
  """A model that is sparse in attention only, with routers that have state."""
  changed |= {'losses': dict(balance=(1.0, 'sum')), 'model.layers': (('d', 1),)}
  cfg = test_step.config(path, **changed)
  with cfg.unlocked(), cfg.ignore_type():
    router = dict(name='loss_free_balancing', num_experts=4, k=2)
    cfg.blocks.d.attention = dict(name='switch_head', router=router, executor='einsum', group_size=None)
  return cfg


NAMES = ['decoder_00.attention.o', 'decoder_00.attention.v']


@pytest.mark.slow
def test_it_reports_and_commits_alike_for_any_microbatches_and_devices(tmp_path):
  batches = [test_step.batch(seed=seed) for seed in range(2)]
  whole, reports = test_step.run(config(tmp_path), batches)
  real = batches[0]['decoder_segment_ids'].sum()
  assert {name: load.sum() for name, load in reports[0]['load'].items()} == dict.fromkeys(NAMES, 2 * 2 * real)
  assert sorted(reports[0]['layers']) == NAMES and 'max_load_ratio' in reports[0]['layers'][NAMES[0]]
  assert reports[0]['loss/total'] > reports[0]['loss/ce'] + reports[0]['loss/aux_balance'] - 1e-3
  assert reports[0]['loss/aux_balance'] > 1.5                        # both mixtures, each about 1 at balance
  bias = lambda state: state['router_state']['decoder']['segments'][0]['blocks'][0]['attention']
  assert all(np.abs(bias(whole)[part]['router']['heads']['bias']).max() > 0 for part in 'ov')
  changed = {'mesh.expert': 2, 'mesh.model': 2, 'train.microbatches': 2}
  split, others = test_step.run(config(tmp_path, **changed), batches, 8)
  same = ('loss/ce', 'loss/total', 'loss/aux_balance', 'grad_norm', 'load')
  for mine, theirs in zip(others, reports):
    test_step.assert_close({name: mine[name] for name in same}, {name: theirs[name] for name in same})
  test_step.assert_close(bias(split), bias(whole))


def tiny(**attention):
  attention = dict(name='switch_head', router=SIGMA, **attention)
  blocks = dict(a=dict(layer='dense', d_ff=8, attention=attention), d=dict(layer='dense', d_ff=8))
  fields = dict(name='lm', vocab_size=11, d_model=8, num_heads=HEADS, head_dim=4,
                layers=(('da', 1), ('a', 1)))
  return lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0))


def test_its_parts_are_layers_by_name_and_their_choices_are_traced():
  model = tiny()
  assert list(model.decoder.by_name()) == [
      'decoder_00', 'decoder_01', 'decoder_01.attention.v', 'decoder_01.attention.o', 'decoder_02',
      'decoder_02.attention.v', 'decoder_02.attention.o']
  ones = jnp.ones((1, 4), jnp.int32)
  batch = dict(decoder_input_tokens=ones, decoder_segment_ids=ones, decoder_positions=jnp.arange(4)[None])
  found = choices.choices(model, batch)
  assert sorted(found) == [f'decoder_0{i}.attention.{part}' for i in (1, 2) for part in 'ov']
  chosen = found['decoder_01.attention.v']
  assert chosen.num_experts == HEADS * EXPERTS and all(len(token) == 2 * HEADS for token in chosen.experts[0])


def test_its_models_have_the_parameters_of_the_dense_ones_and_fewer_products():
  of = lambda arg: experiment.load(f'switch_head/wikitext103{arg}')[0]
  for size in ('small', 'big'):
    mine, dense = of(f':size={size}'), of(f':size={size},method=dense')
    total = flops.parameters(mine)['total']
    assert abs(total / flops.parameters(dense)['total'] - 1) < 0.01
    assert flops.active_per_token(mine)['forward'] < 0.85 * flops.active_per_token(dense)['forward']
  # D 412, 2 heads of 64, 15 of 16 matrices of values and outputs are experts that 3 of 5 tokens pass.
  active = flops.parameters(of(''))['active']
  assert flops.parameters(of(''))['total'] - active == 16 * 2 * 2 * (5 - 3) * 412 * 64


@pytest.mark.parametrize('router, said', [
    (dict(name='expert_choice', num_experts=2, allow_causal=True), 'expert_choice.py does not choose'),
    (SIGMA | dict(k=4), 'k=4 with num_experts=3')])
def test_mistakes(router, said):
  with pytest.raises(errors.UserError, match=said):
    per_head(router)(jnp.ones((1, 4, 8)), calls.context(1, 4), {})


def test_a_model_without_attention_takes_none():
  block = dict(layer='dense', d_ff=8, attention=dict(name='switch_head', router=SIGMA))
  with pytest.raises(errors.UserError, match='the model has no attention; nearest: attention=False'):
    lookup.recipe('model', dict(name='mlp_lm', vocab_size=11, d_model=8, layers=(('a', 1),)))(
        blocks=dict(a=block), rngs=nnx.Rngs(0))


def test_all_heads_have_keys_and_values():
  fields = dict(name='lm', vocab_size=11, d_model=8, layers=(('d', 1),), num_heads=2, head_dim=4,
                num_kv_heads=1, attention=dict(name='switch_head', router=SIGMA))
  with pytest.raises(errors.UserError, match='model.num_kv_heads=1: SwitchHead .*nearest: .*=None'):
    lookup.recipe('model', fields)(blocks=dict(d=dict(layer='dense', d_ff=8)), rngs=nnx.Rngs(0))


def test_heads_are_split_evenly_before_anything_is_compiled(tmp_path):
  cfg = config(tmp_path, **{'model.num_heads': 3, 'mesh.data': 1, 'mesh.model': 2})
  said = "mesh.model=2: the axis 'heads' of .*: 3 is not divisible by 2; nearest: mesh.model=1"
  with states.on_mesh(cfg.mesh, jax.devices()[:2]) as mesh, pytest.raises(errors.UserError, match=said):
    states.blueprint(cfg, mesh)
