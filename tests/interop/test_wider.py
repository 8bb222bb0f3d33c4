"""Phi-3.5-MoE, ERNIE 4.5 and Granite with all options against decoders written out in numpy (`wider.py`)."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors import numpy as theirs

from stmoe import errors
from stmoe.derive import convert
from stmoe.interop import fields
from stmoe.interop import tensors as files
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
             moe_k=3, moe_intermediate_size=10, intermediate_size=14, moe_num_shared_experts=2, moe_norm_min=1e-12,
             moe_layer_start_index=1, moe_layer_end_index=-1, moe_layer_interval=1, use_bias=False)
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


def ids(rows=2):
  return np.random.default_rng(7).integers(3, 40, (rows, LENGTH)).astype(np.int32)


@pytest.mark.parametrize('name', CASES)
def test_logits(name):
  """Within 1e-5 of numbers of unit order."""
  hf, rates, size = CASES[name]
  found = np.asarray(jax.jit(lambda m, b: m(b)[0])(
      runs.filled(hf, wider.tensors(hf)), runs.row('decoder', ids())))
  wanted = wider.logits(hf, wider.tensors(hf), ids(), rates, size)
  assert 0.2 < wanted.std() < 10
  np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.std(), rtol=2e-5)


def test_contests_are_decided_in_both_ways():
  """Gates between a half and 1, and gates of 1: the cases tell thresholds apart."""
  scores = np.array([2.0, 1.7, -1.0])                                # (2 - 1.7) / 2 = 0.15
  assert wider.mixer(scores, 0.07) == [(0, 1.0), (1, 1.0)]
  gate = 1 / (1 + math.exp(-0.3))
  np.testing.assert_allclose(wider.mixer(scores, 0.08), [(0, gate), (1, 1.0)])
