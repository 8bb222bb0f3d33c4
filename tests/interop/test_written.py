"""Llama's form, DeepSeekMoE, OLMoE and FlexOlmo, all options, against decoders in numpy (`written.py`)."""

import math

import numpy as np
import pytest

from stmoe.derive import convert
from stmoe.interop import fields
from tests.interop import runs
from tests.interop import written

LLAMA = dict(architectures=['LlamaForCausalLM'], model_type='llama', vocab_size=40, hidden_size=24,
             intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             hidden_act='silu', max_position_embeddings=16, rms_norm_eps=1e-5, tie_word_embeddings=False,
             rope_theta=1e4, bos_token_id=1, eos_token_id=2)
OPEN = dict(LLAMA, attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=True)
MISTRAL = dict(LLAMA, architectures=['MistralForCausalLM'], model_type='mistral', sliding_window=5)
DEEPSEEK = dict(LLAMA, architectures=['DeepseekForCausalLM'], model_type='deepseek', num_hidden_layers=3,
                num_key_value_heads=4, n_routed_experts=10, num_experts_per_tok=3, n_shared_experts=2,
                moe_intermediate_size=7, first_k_dense_replace=1, moe_layer_freq=1, norm_topk_prob=False,
                scoring_func='softmax')
FLEX = dict(LLAMA, architectures=['FlexOlmoForCausalLM'], model_type='flex_olmo', num_experts=5,
            num_experts_per_tok=2, norm_topk_prob=False, rms_norm_eps=1e-3)
OLMOE = dict(FLEX, architectures=['OlmoeForCausalLM'], model_type='olmoe')
LENGTH = 24


def plain(pairs, base=1e4):
  return base ** (-np.arange(pairs) / pairs)


def llama3(pairs):
  """Factor 8 of 12 positions: waves up to 3 long stay, from 12 on they are slowed."""
  rate = plain(pairs)
  wave = 2 * math.pi / rate
  kept = np.clip((12 / wave - 1) / (4 - 1), 0, 1)
  return rate * kept + rate / 8 * (1 - kept)


def yarn(pairs, factor=4.0, length=12, fast=4.0, slow=0.5, whole=False):
  """Borders are the pairs that turn 4 times and half a time in 12 positions, rounded or not."""
  rate = plain(pairs)
  turns = lambda number: pairs * math.log(length / (2 * math.pi * number)) / math.log(1e4)
  low, high = max(turns(fast), 0), min(turns(slow), 2 * pairs - 1)
  if whole:
    low, high = max(math.floor(turns(fast)), 0), min(math.ceil(turns(slow)), 2 * pairs - 1)
  mixed = np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
  return rate * (1 - mixed) + rate / factor * mixed


YARN = dict(factor=4.0, original_max_position_embeddings=12, beta_fast=4.0, beta_slow=0.5)
SIZE = 0.1 * math.log(4.0) + 1
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12)
THETA = dict(rope_theta=1e4)
# Changes of the config.json, rates of the positions, and the size of cos and sin.
CASES = {
    'plain': (LLAMA, plain(3), 1),
    'biases, wide heads, tied': (OPEN, plain(8), 1),
    'heads by themselves': (dict(LLAMA, num_key_value_heads=None), plain(3), 1),
    'window': (MISTRAL, plain(3), 1),
    'no window': (dict(MISTRAL, sliding_window=None), plain(3), 1),
    'linear, older spelling': (dict(LLAMA, rope_scaling=dict(type='linear', factor=2.5)), plain(3) / 2.5, 1),
    'linear': (dict(LLAMA, rope_theta=None, rope_parameters=dict(rope_type='linear', factor=2.5, **THETA)),
               plain(3) / 2.5, 1),
    'llama3, older spelling': (dict(OPEN, rope_scaling=dict(rope_type='llama3', **LLAMA3)), llama3(8), 1),
    'llama3': (dict(OPEN, rope_theta=None, rope_parameters=dict(rope_type='llama3', **LLAMA3, **THETA)),
               llama3(8), 1),
    # 24 positions of 16: the base grows by 3 * 24 / 16 - 2, to the power 6 / 4.
    'dynamic': (dict(LLAMA, rope_scaling=dict(type='dynamic', factor=3.0)), plain(3, 1e4 * 2.5 ** 1.5), 1),
    'dynamic, a long model': (dict(LLAMA, max_position_embeddings=64, rope_scaling=dict(
        rope_type='dynamic', factor=3.0)), plain(3), 1),
    'yarn, older spelling': (dict(OPEN, rope_scaling=dict(type='yarn', **YARN)), yarn(8, whole=True), SIZE),
    'yarn, not rounded': (dict(OPEN, rope_theta=None, rope_parameters=dict(
        rope_type='yarn', truncate=False, **YARN, **THETA)), yarn(8), SIZE),
    'yarn, its factor': (dict(OPEN, rope_theta=None, rope_parameters=dict(
        rope_type='yarn', attention_factor=1.3, **YARN, **THETA)), yarn(8, whole=True), 1.3),
    'yarn, its factor, older spelling, not rounded': (dict(OPEN, rope_scaling=dict(
        type='yarn', attention_factor=0.8, truncate=False, **YARN)), yarn(8), 0.8),
    'norms of outputs': (FLEX, plain(3), 1),
    'norms of outputs, other fields': (dict(FLEX, num_experts=None, num_local_experts=4, norm_topk_prob=True,
                                            attention_bias=True, num_key_value_heads=None), plain(3), 1),
    'olmoe with biases': (dict(OLMOE, attention_bias=True), plain(3), 1),
    'deepseek': (DEEPSEEK, plain(3), 1),
    'deepseek, other fields': (dict(DEEPSEEK, norm_topk_prob=True, attention_bias=True, num_key_value_heads=2,
                                    rope_scaling=dict(type='linear', factor=2.0)), plain(3) / 2, 1),
    'deepseek, every other layer, nothing shared': (dict(
        DEEPSEEK, num_hidden_layers=5, first_k_dense_replace=0, moe_layer_freq=2, n_shared_experts=None,
        num_experts_per_tok=1, norm_topk_prob=True), plain(3), 1),
    'yarn of two scales': (dict(OPEN, rope_scaling=dict(type='yarn', mscale=0.5, mscale_all_dim=1.0, **YARN)),
                           yarn(8, whole=True), (0.05 * math.log(4) + 1) / SIZE),
}


@pytest.mark.parametrize('name', CASES)
def test_logits(name):
  """Within 1e-5 of numbers of unit order, 3e-6 on average: positions are the same, not nearly the same."""
  hf, rates, size = CASES[name]
  made, ids = written.tensors(hf), runs.ids(2, LENGTH)
  found = runs.logits(runs.filled(hf, made), ids)
  wanted = written.logits(hf, made, ids, rates, size)
  assert 0.5 < wanted.std() < 5
  np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
  assert np.sqrt(np.mean((found - wanted) ** 2)) < 3e-6


def test_a_dense_checkpoint_goes_in_and_out(tmp_path):
  """Logits, decoding with caches, bytes; and an export without the import's memory is the same model."""
  hf, rates, _ = CASES['biases, wide heads, tied']
  made = written.tensors(hf)
  runs.save(tmp_path / 'in', hf, made)
  convert.read(tmp_path / 'in', tmp_path / 'run')
  _, model = runs.load(tmp_path / 'run')
  runs.assert_goes_on(model, runs.ids(1, 6), lambda ids: written.logits(hf, made, ids, rates))
  runs.assert_comes_back(tmp_path, hf['model_type'])


@pytest.mark.parametrize('name', [name for name in CASES if 'rope_scaling' not in CASES[name][0]
                                  and 'rope_parameters' not in CASES[name][0]])
def test_what_is_described_means_the_same_model(name):
  hf, _, _ = CASES[name]
  _, family = fields.family(hf)
  made = family.configure(hf, hf['tie_word_embeddings'])
  described = family.describe(made)
  assert fields.differences(made, family.configure(described, hf['tie_word_embeddings'])) == []
