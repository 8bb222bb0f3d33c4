"""Phi-3.5-MoE, ERNIE 4.5 and Granite with all options against decoders written out in numpy (`wider.py`)."""

import math

import numpy as np
import pytest

from stmoe import errors
from stmoe.derive import convert
from stmoe.interop import fields
from tests.interop import runs
from tests.interop import wider

LENGTH = 14
SIZES = dict(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             hidden_act='silu', max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
             rope_theta=1e4, bos_token_id=1, eos_token_id=2)
PHI = dict(SIZES, architectures=['PhimoeForCausalLM'], model_type='phimoe', num_local_experts=6,
           num_experts_per_tok=2, intermediate_size=10, attention_bias=True, lm_head_bias=True,
           router_jitter_noise=0.1, input_jitter_noise=0.0, sliding_window=None)
ERNIE = dict(SIZES, architectures=['Ernie4_5_MoeForCausalLM'], model_type='ernie4_5_moe', moe_num_experts=6,
             moe_k=3, moe_intermediate_size=10, intermediate_size=14, moe_num_shared_experts=2,
             moe_norm_min=1e-12, moe_layer_start_index=1, moe_layer_end_index=-1, moe_layer_interval=1,
             use_bias=False)
GRANITE = dict(SIZES, architectures=['GraniteMoeForCausalLM'], model_type='granitemoe', num_local_experts=6,
               num_experts_per_tok=3, intermediate_size=10, attention_bias=False, embedding_multiplier=3.0,
               residual_multiplier=0.4, attention_multiplier=0.3, logits_scaling=1.5)
SHARED = dict(GRANITE, architectures=['GraniteMoeSharedForCausalLM'], model_type='granitemoeshared',
              shared_intermediate_size=8)
FACTORS = dict(short_factor=[1.0, 1.3, 1.6], long_factor=[1.1, 2.0, 5.0], short_mscale=1.2, long_mscale=1.4)
LONGROPE = FACTORS | dict(original_max_position_embeddings=8)
PLAIN = 1e4 ** (-np.arange(3) / 3)
SHORT, LONG = PLAIN / FACTORS['short_factor'], PLAIN / FACTORS['long_factor']
# config.json, rates of the positions, size of cos and sin. Texts have 14 positions.
CASES = {
    'phi': (PHI, PLAIN, 1),
    'phi, no biases, window, wide heads': (dict(
        PHI, attention_bias=False, lm_head_bias=False, sliding_window=5, head_dim=8, num_key_value_heads=1),
                                           1e4 ** (-np.arange(4) / 4), 1),
    'phi, tied with a biased head, wide contest': (dict(
        PHI, tie_word_embeddings=True, router_jitter_noise=0.4, rms_norm_eps=0.05), PLAIN, 1),
    'phi, no contest': (dict(PHI, router_jitter_noise=0.0), PLAIN, 1),
    'phi, long texts': (dict(PHI, rope_theta=None, rope_parameters=dict(
        LONGROPE, rope_type='longrope', rope_theta=1e4)), LONG, 1.4),
    'phi, long texts, older spelling': (dict(PHI, rope_scaling=dict(LONGROPE, type='longrope'),
                                             original_max_position_embeddings=8), LONG, 1.4),
    'phi, short texts': (dict(PHI, rope_scaling=dict(
        LONGROPE, type='longrope', original_max_position_embeddings=14)), SHORT, 1.2),
    'phi, sizes by length': (dict(PHI, rope_scaling=dict(
        LONGROPE, type='longrope', short_mscale=None, long_mscale=None)), LONG,
                             math.sqrt(1 + math.log(4) / math.log(8))),
    'phi, sizes by factor': (dict(PHI, rope_scaling=dict(
        LONGROPE, type='longrope', short_mscale=None, long_mscale=None, attention_factor=0.8)), LONG, 0.8),
    'ernie': (ERNIE, PLAIN, 1),
    'ernie, all sparse, few experts, large least sum': (dict(
        ERNIE, moe_layer_start_index=0, moe_k=1, moe_norm_min=0.5, num_key_value_heads=4), PLAIN, 1),
    'ernie, one choice': (dict(ERNIE, moe_k=1, moe_num_shared_experts=0), PLAIN, 1),
    'ernie, every second from the second on, biases, tied': (dict(
        ERNIE, num_hidden_layers=5, moe_layer_interval=2, moe_layer_start_index=2, use_bias=True,
        moe_num_shared_experts=1, tie_word_embeddings=True), PLAIN, 1),
    'ernie, dense at both ends': (dict(ERNIE, num_hidden_layers=5, moe_layer_start_index=1,
                                       moe_layer_end_index=2, head_dim=8), 1e4 ** (-np.arange(4) / 4), 1),
    'ernie, slower': (dict(ERNIE, rope_scaling=dict(type='linear', factor=2.5)), PLAIN / 2.5, 1),
    'granite': (GRANITE, PLAIN, 1),
    'granite, biases, tied, no multipliers': (dict(
        {key: value for key, value in GRANITE.items() if 'multiplier' not in key and 'scaling' not in key},
        attention_bias=True, tie_word_embeddings=True, num_experts_per_tok=6, num_key_value_heads=None),
                                              PLAIN, 1),
    'granite, slower': (dict(GRANITE, rope_theta=None, rope_parameters=dict(
        rope_type='linear', factor=2.5, rope_theta=1e4)), PLAIN / 2.5, 1),
    'granite, shared': (SHARED, PLAIN, 1),
    'granite, nothing shared': (dict(SHARED, shared_intermediate_size=0, num_key_value_heads=1), PLAIN, 1),
}


# Cases that the default suite runs: one of each family.
USUAL = ('phi, long texts', 'ernie, every second from the second on, biases, tied', 'granite, shared')


@pytest.mark.parametrize('name', [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_logits(name):
  """Within 1e-5 of numbers of unit order."""
  hf, rates, size = CASES[name]
  made, ids = wider.tensors(hf), runs.ids(2, LENGTH)
  found = runs.logits(runs.filled(hf, made), ids)
  wanted = wider.logits(hf, made, ids, rates, size)
  assert 0.2 < wanted.std() < 10
  np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.std(), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['phi, tied with a biased head, wide contest', USUAL[1], USUAL[2]])
def test_in_and_out(name, tmp_path):
  """Decoding with caches, the same bytes, and the same model where nothing of the import is remembered."""
  hf, rates, size = CASES[name]
  made = wider.tensors(hf)
  runs.save(tmp_path / 'in', hf, made)
  convert.read(tmp_path / 'in', tmp_path / 'run')
  _, model = runs.load(tmp_path / 'run')
  runs.assert_goes_on(model, runs.ids(1, 6), lambda ids: wider.logits(hf, made, ids, rates, size))
  runs.assert_comes_back(tmp_path, hf['model_type'])


def test_contests_are_decided_in_both_ways():
  """A gate of a contest, and gates of 1: the threshold matters."""
  scores = np.array([2.0, 1.7, -1.0])                                # (2 - 1.7) / 2 = 0.15
  assert wider.mixer(scores, 0.07) == [(0, 1.0), (1, 1.0)]
  gate = 1 / (1 + math.exp(-0.3))
  np.testing.assert_allclose(wider.mixer(scores, 0.08), [(0, gate), (1, 1.0)])


def configure(hf):
  return fields.family(hf)[1].configure(hf, hf['tie_word_embeddings'])


@pytest.mark.parametrize('hf, says', [
    (dict(PHI, num_experts_per_tok=3), 'num_experts_per_tok=3 is not supported; nearest: 2'),
    (dict(PHI, input_jitter_noise=1.5), 'input_jitter_noise=1.5'),
    (dict(PHI, num_experts=7), 'num_local_experts=6 and num_experts=7'),
    (dict(PHI, rope_scaling=dict(LONGROPE, type='longrope'), original_max_position_embeddings=9),
     'original_max_position_embeddings twice: 9 and, of rotary positions, 8'),
    (dict(PHI, rope_scaling=dict(LONGROPE, type='longrope', long_factor=None)), 'no long_factor'),
    (dict(PHI, rope_scaling=dict(LONGROPE, type='longrope', short_factor=[1.0, 0.0])), 'short_factor'),
    (dict(PHI, rope_scaling=dict(LONGROPE, type='longrope', beta_fast=3)), 'beta_fast=3 of rotary positions'),
    (dict(ERNIE, moe_layer_end_index=-2), 'moe_layer_end_index=-2'),
    (dict(ERNIE, moe_layer_interval=0), 'moe_layer_interval=0'),
    (dict(ERNIE, moe_k=None), 'no moe_k'),
    (dict(GRANITE, num_experts_per_tok=1), 'num_experts_per_tok=1'),
    (dict(GRANITE, residual_multiplier=0.0), 'residual_multiplier=0.0'),
    (dict(SHARED, position_embedding_type='nope'), "position_embedding_type='nope' is not supported"),
])
def test_what_is_not_supported_is_named(hf, says):
  with pytest.raises(errors.UserError, match=says):
    configure(hf)


def test_names_and_fields_of_other_versions():
  other = {key: value for key, value in ERNIE.items() if key not in ('moe_k', 'moe_num_experts')}
  assert configure(dict(other, num_experts=6, num_experts_per_tok=3)) == configure(ERNIE)
  assert configure(dict(PHI, architectures=['PhiMoEForCausalLM'])) == configure(PHI)
  short = {key: value for key, value in PHI.items() if key != 'router_jitter_noise'}
  assert configure(short)['blocks']['m']['router']['epsilon'] == 0.01
