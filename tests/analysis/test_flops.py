"""The analytic count of matrix products against what is traced and what the compiler reports."""

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from stmoe.analysis import flops
from stmoe.configs import common

LENGTH, WIDTH, EXPERTS = 48, 32, 4      # shorter than what causal attention cuts into blocks
DENSE = dict(layer='dense', d_ff=96, gated=True)


def moe(router, k=1, **fields):
  # Capacity k S / E: as many slots as edges, so the buffers hold no row that active FLOPs leave out.
  return dict(layer='moe', executor='gather', group_size=None, experts=dict(name='mlp', d_ff=96),
              router=dict(name=router, num_experts=EXPERTS, capacity_factor=(float(k), float(k)), **fields))


def language_model(sparse=DENSE, **fields):
  return ml_collections.ConfigDict(dict(
      model=dict(name='lm', vocab_size=80, d_model=WIDTH, num_heads=2, head_dim=16,
                 layers=(('dm', 2),)) | fields,
      blocks=dict(d=DENSE, m=sparse), data=common.data('stdlib', LENGTH)))


def encoder_decoder(sparse=DENSE, **fields):
  return ml_collections.ConfigDict(dict(
      model=dict(name='t5', vocab_size=80, d_model=WIDTH, num_heads=2, head_dim=16, encoder=(('dm', 2),),
                 decoder=(('d', 3),)) | fields,
      blocks=dict(d=DENSE, m=sparse), data=common.seq2seq('stdlib', LENGTH, 24)))


def encoder(sparse=DENSE, head=None):
  return ml_collections.ConfigDict(dict(
      model=dict(name='encoder', vocab_size=80, d_model=WIDTH, num_heads=2, head_dim=16, length=LENGTH,
                 encoder=(('dm', 2),), head=head or dict(name='span_head')),
      blocks=dict(d=DENSE, m=sparse), data=common.spans('squad', LENGTH)))


CASES = dict(
    lm=language_model(),
    lm_tied=language_model(tie_embeddings=True),
    lm_untied=language_model(tie_embeddings=False),
    lm_grouped_query=language_model(num_kv_heads=1),
    # Queries and keys of 16 + 16, values of 12.
    lm_latent=language_model(attention=dict(name='latent_attention', nope_dim=16, value_dim=12, kv_rank=20)),
    lm_switch=language_model(moe('switch')),
    lm_gshard=language_model(moe('gshard', 2)),
    lm_st_moe=language_model(moe('st_moe', 2)),
    lm_lora=language_model(moe('gshard', 2) | dict(experts=dict(name='lora', d_ff=96, rank=3))),
    # Half of the choices go to virtual experts; a constant expert reads every token.
    lm_virtual=language_model(moe('st_moe', 2) | dict(virtual=('zero', 'copy', 'constant', 'zero'))),
    t5=encoder_decoder(),
    t5_expert_choice=encoder_decoder(moe('expert_choice', 2)),
    encoder=encoder(),
    encoder_switch=encoder(moe('switch')),
    t5_feed_forward_block=encoder_decoder(DENSE | dict(attention=False)),
)


def batch(cfg):
  made = {}
  for stack, length in flops.lengths(cfg).items():
    for name in ('input_tokens', 'segment_ids', 'positions'):
      made[f'{stack}_{name}'] = jnp.ones((1, length), jnp.int32)
  return made


def forward(model, batch):
  return model(batch, train=True)[0]


def dot_flops(jaxpr):
  """2abc of every dot_general in `jaxpr`, also in the functions that it calls."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      inner = 1
      for axis in contracted:
        inner *= shape[axis]
      total += 2 * eqn.outvars[0].aval.size * inner
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += dot_flops(inner)
  return total


@pytest.mark.parametrize('name', CASES)
def test_counts_every_traced_product(name):
  cfg = CASES[name]
  model = flops.abstract(cfg, scan_layers=False)
  traced = dot_flops(jax.make_jaxpr(forward)(model, batch(cfg)).jaxpr)
  assert flops.active_per_token(cfg)['forward_per_row'] == traced


@pytest.mark.parametrize('name', ['lm', 'lm_switch'])
def test_compiler_reports_the_products_and_little_else(name):
  # XLA adds norms, softmax, rotary turns and the router's sorting: 1.05 and 1.06 times the products here.
  cfg = CASES[name]
  # Layers are not in a loop, of which the compiler would count one turn.
  model = flops.abstract(cfg, scan_layers=False)
  reported = jax.jit(forward).lower(model, batch(cfg)).compile().cost_analysis()['flops']
  assert 1.0 <= reported / flops.active_per_token(cfg)['forward_per_row'] <= 1.1


def test_einsum_executor_multiplies_to_dispatch():
  cfg = CASES['lm_switch'].copy_and_resolve_references()
  cfg.blocks.m.executor = 'einsum'
  traced = dot_flops(jax.make_jaxpr(forward)(flops.abstract(cfg, scan_layers=False), batch(cfg)).jaxpr)
  # Two layers dispatch and combine by products of [S,D] with masks [S,EC], EC = S slots.
  assert traced - flops.active_per_token(cfg)['forward_per_row'] == 2 * 2 * (2 * LENGTH * LENGTH * WIDTH)


def test_a_head_of_experts_routes_once_a_row():
  head = dict(name='span_mixture', router=dict(name='vmoe', num_experts=EXPERTS, k=2),
              experts=dict(name='mlp', d_ff=48))
  dense, sparse = (flops.active_per_token(encoder(head=each))['forward_per_row'] for each in (None, head))
  assert sparse - dense == 2 * LENGTH * (2 * 2 * WIDTH * 48) + 2 * WIDTH * EXPERTS


def test_matrices_that_are_put_together_count_as_matrices():
  made = language_model(moe('gshard', 2) | dict(experts=dict(name='mpo', d_ff=96)))
  plain = language_model(moe('gshard', 2))
  assert flops.active_per_token(made) == flops.active_per_token(plain)


def test_units_of_the_figures():
  figures = flops.active_per_token(CASES['t5'])
  assert figures['train'] == 3 * figures['forward']
  assert figures['forward_per_row'] == 24 * figures['forward']


def test_parameters_by_hand():
  # Two layers of attention 4 D^2 and gated feed-forward 3 D F or 4 experts of 2 D F, three gains D each
  # pair and one final, router D E, tied embedding V D.
  total = 4 * 4 * 32**2 + 2 * 3 * 32 * 96 + 2 * (4 * 2 * 32 * 96 + 32 * 4) + 9 * 32 + 80 * 32
  inactive = 2 * 3 * 2 * 32 * 96
  assert flops.parameters(language_model(moe('switch'), tie_embeddings=True)) == dict(
      total=total, active=total - inactive)


@pytest.mark.parametrize('name, fields, rows', [
    ('adamoe', dict(num_null=8, k=3), 3 * 4 / 12), ('adamoe', dict(num_null=8, k=3, target=1.25), 1.25),
    ('top_p_routing', dict(p=0.6), 3), ('top_p_routing', dict(p=0.6, expected=1.75), 1.75),
    ('remoe', dict(k=2), 2), ('moe_plus_plus', {}, 2 * 3 / (3 + 4)), ('tc_moe', {}, 2),
    ('tc_moe', dict(expected=1.5), 1.5)])
def test_routers_of_a_varying_number_of_experts_count_their_mean(name, fields, rows):
  block = dict(layer='moe', router=dict(name=name, num_experts=EXPERTS) | fields,
               experts=dict(name='mlp', d_ff=96))
  layer = dict(block, layer=name) if name == 'moe_plus_plus' else block
  assert bank_shares(language_model(layer)) == {rows / EXPERTS}


def bank_shares(cfg):
  return {m.share for m in flops.matrices(cfg) if 'expert' in m.names}


@pytest.mark.parametrize('scan_layers', [True, False])
def test_share_of_a_bank(scan_layers):
  fields = dict(scan_layers=scan_layers)
  assert bank_shares(language_model(moe('gshard', 2), **fields)) == {2 / EXPERTS}
  assert bank_shares(encoder_decoder(moe('expert_choice', 0.5), **fields)) == {0.5 / EXPERTS}
