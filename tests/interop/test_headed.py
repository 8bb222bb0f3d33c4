"""Qwen3-MoE, GLM-4.5 and dots.llm1 with all options against decoders written out in numpy (`headed.py`)."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.derive import convert
from stmoe.interop import fields
from stmoe.interop import tensors as files
from tests.interop import headed
from tests.interop import runs

SIZES = dict(vocab_size=40, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             moe_intermediate_size=10, intermediate_size=14, hidden_act='silu', rms_norm_eps=1e-5,
             rope_theta=1e4, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, num_experts_per_tok=3,
             max_position_embeddings=32)
QWEN = dict(SIZES, architectures=['Qwen3MoeForCausalLM'], model_type='qwen3_moe', num_experts=6,
            num_hidden_layers=2, norm_topk_prob=True)
V3 = dict(SIZES, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1, num_hidden_layers=3)
GLM = dict(V3, architectures=['Glm4MoeForCausalLM'], model_type='glm4_moe')
DOTS = dict(V3, architectures=['Dots1ForCausalLM'], model_type='dots1', sliding_window=None)
FULL, SLIDING = 'full_attention', 'sliding_attention'


def facts(sparse, windows=None, turned=8, **more):
  return headed.Facts(tuple(map(bool, sparse)), windows or (None,) * len(sparse), turned, **more)


SIX = dict(QWEN, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
SIGMOID = dict(groups=1, shared=10)
HALF = dict(turned=4, normed=False, **SIGMOID)
CASES = {
    'qwen': (QWEN, facts([1, 1])),
    'qwen, older names, null for none': (dict(
        QWEN, num_experts=None, num_local_experts=6, mlp_only_layers=None, sliding_window=None),
                                         facts([1, 1])),
    'qwen, every second layer, one left out, gates as they are, biases, tied': (dict(
        SIX, norm_topk_prob=False, attention_bias=True, tie_word_embeddings=True),
        facts([0, 1, 0, 0, 0, 1], biased='qkvo', over_sum=False)),
    'qwen, the last layer dense, every head its own, one choice, large epsilon': (dict(
        QWEN, num_hidden_layers=3, mlp_only_layers=[0, 2], num_key_value_heads=4, norm_topk_prob=False,
        num_experts_per_tok=1, rms_norm_eps=0.3), facts([0, 1, 0], over_sum=False)),
    'qwen, window': (dict(QWEN, use_sliding_window=True, sliding_window=3, max_window_layers=1),
                     facts([1, 1], windows=(3, 3))),
    'qwen, a window that is not used': (dict(QWEN, sliding_window=3), facts([1, 1])),
    'qwen, slower': (dict(QWEN, rope_theta=None, rope_parameters=dict(
        rope_type='linear', factor=2.5, rope_theta=1e4)),
                     facts([1, 1], rates=1e4 ** (-np.arange(4) / 4) / 2.5)),
    'glm': (GLM, facts([0, 1, 1], **HALF)),
    'glm, three dense layers, groups, scaled, norms, biases': (dict(
        GLM, num_hidden_layers=5, first_k_dense_replace=3, n_group=4, topk_group=2, routed_scaling_factor=2.5,
        use_qk_norm=True, attention_bias=True, n_shared_experts=2),
        facts([0, 0, 0, 1, 1], turned=4, biased='qkv', groups=4, kept=2, scale=2.5, shared=20)),
    'glm, a quarter, no dense layer, gates as they are, tied, one head of keys': (dict(
        GLM, first_k_dense_replace=0, partial_rotary_factor=0.25, norm_topk_prob=False,
        tie_word_embeddings=True, num_key_value_heads=1),
        facts([1, 1, 1], **HALF | dict(turned=2, over_sum=False))),
    'glm, whole heads, newer spelling': (dict(GLM, rope_theta=None, rope_parameters=dict(
        rope_type='default', rope_theta=1e4, partial_rotary_factor=1.0)),
        facts([0, 1, 1], **HALF | dict(turned=8))),
    'glm, what it is where nothing is said': (
        {key: GLM[key] for key in {*GLM} - {'n_shared_experts', 'first_k_dense_replace'}},
        facts([0, 1, 1], **HALF)),
    'glm, a part that is rounded down': (dict(GLM, head_dim=10, partial_rotary_factor=0.69),
                                         facts([0, 1, 1], **HALF | dict(turned=6))),
    'glm, slower': (dict(GLM, rope_scaling=dict(type='linear', factor=2.5)),
                    facts([0, 1, 1], rates=1e4 ** (-np.arange(2) / 2) / 2.5, **HALF)),
    'dots': (dict(DOTS, norm_topk_prob=True), facts([0, 1, 1], **SIGMOID)),
    'dots, windows by layer, biases, groups': (dict(
        DOTS, num_hidden_layers=4, first_k_dense_replace=2, sliding_window=3, attention_bias=True,
        layer_types=[FULL, SLIDING, FULL, SLIDING], n_group=2, topk_group=1, scoring_func='noaux_tc'),
        facts([0, 0, 1, 1], windows=(None, 3, None, 3), biased='qkvo', groups=2, over_sum=False, shared=10)),
    'dots, windows past a layer, tied, scaled': (dict(
        DOTS, sliding_window=4, max_window_layers=2, tie_word_embeddings=True, routed_scaling_factor=1.5,
        norm_topk_prob=True, head_dim=6),
        facts([0, 1, 1], windows=(None, None, 4), turned=6, scale=1.5, **SIGMOID)),
}
ONE = ('qwen, every second layer, one left out, gates as they are, biases, tied',
       'glm, three dense layers, groups, scaled, norms, biases', 'dots, windows by layer, biases, groups')


def case(name):
  """(config.json, Facts, tensors) of a case."""
  hf, known = CASES[name]
  experts = hf.get('n_routed_experts') or hf.get('num_experts') or hf['num_local_experts']
  return hf, known, headed.tensors(hf, known, experts)


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name not in ONE))
                                  for name in CASES])
def test_logits(name):
  hf, known, made = case(name)
  ids = runs.ids(2, 9)
  found = runs.logits(runs.filled(hf, made), ids)
  wanted = headed.logits(hf, known, made, ids)
  assert 0.2 < wanted.std() < 10
  np.testing.assert_allclose(found, wanted, atol=2e-5 * wanted.std(), rtol=2e-5)


@pytest.mark.parametrize('name', CASES)
def test_a_description_is_the_same_model(name):
  hf, _, _ = case(name)
  family = fields.family(hf)[1]
  tied = hf['tie_word_embeddings']
  sections = family.configure(hf, tied)
  described = hf | family.describe(sections)
  assert fields.differences(sections, family.configure(described, tied)) == []
  assert fields.differences(sections, family.configure(family.describe(sections), tied)) == []


@pytest.mark.slow
@pytest.mark.parametrize('name', ONE)
def test_checkpoints_go_in_and_out(name, tmp_path):
  """Scanned, decoded with caches; the tensors of a module for later tokens are told and left out."""
  hf, known, made = case(name)
  more = {f'model.layers.{hf["num_hidden_layers"]}.eh_proj.weight': np.ones((2, 3), np.float32)}
  more = more if hf['model_type'] == 'glm4_moe' else {}
  runs.save(tmp_path / 'in', hf, made | more)
  told = []
  convert.read(tmp_path / 'in', tmp_path / 'run', say=told.append)
  lost = [line for line in told if 'not read, and not in an export' in line]
  assert lost == [f'not read, and not in an export: 1 tensors ({name})' for name in more]
  _, model = runs.load(tmp_path / 'run')
  runs.assert_goes_on(model, runs.ids(1, 5), lambda ids: headed.logits(hf, known, made, ids))
  convert.write(tmp_path / 'run', tmp_path / 'out')
  assert (tmp_path / 'out' / 'config.json').read_bytes() == (tmp_path / 'in' / 'config.json').read_bytes()
  old, new = files.tensors(tmp_path / 'in'), files.tensors(tmp_path / 'out')
  assert set(new) == set(made) and all(files.equal(new[key], old[key]) for key in new)


@pytest.mark.parametrize('hf, changes, says', [
    (QWEN, dict(num_local_experts=7), 'num_experts=6 and num_local_experts=7'),
    (QWEN, dict(num_experts=None), 'no num_experts'),
    (QWEN, dict(rms_norm_eps=None), 'no rms_norm_eps'),
    (QWEN, dict(layer_types=[FULL, SLIDING]), 'layer_types'),
    (QWEN, dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
    (QWEN, dict(num_experts_per_tok=1), 'num_experts_per_tok=1 with gates over their sum'),
    (QWEN, dict(attention_bias='no'), 'attention_bias'),
    (GLM, dict(partial_rotary_factor=0.1), 'partial_rotary_factor=0.1 of head_dim=8 turns 0.*nearest: 2'),
    (GLM, dict(head_dim=6), 'turns 3 numbers.*nearest: 4'),
    (GLM, dict(partial_rotary_factor=0.5, rope_parameters=dict(partial_rotary_factor=0.25)), 'twice'),
    (GLM, dict(moe_layer_freq=2), 'moe_layer_freq'),
    (GLM, dict(scoring_func='softmax'), 'scoring_func'),
    (DOTS, dict(layer_types=[FULL, SLIDING, FULL]), 'sliding_window'),
    (DOTS, dict(layer_types=[FULL, FULL]), 'num_hidden_layers=3'),
    (DOTS, dict(layer_types=[FULL, 'chunked_attention', FULL]), 'chunked_attention'),
    (DOTS, dict(scoring_func='softmax'), 'scoring_func')])
def test_what_is_not_supported_is_one_line(hf, changes, says):
  with pytest.raises(errors.UserError, match=says) as caught:
    fields.family(hf)[1].configure(hf | changes, False)
  assert '\n' not in str(caught.value)
