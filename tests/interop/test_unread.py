"""A config.json of another model is refused in one line that names the field, for every family."""

import json
import pathlib

import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.interop import fields
from stmoe.interop import unread

STORED = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
SIZES = dict(vocab_size=40, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=64,
             hidden_act='silu', num_experts_per_tok=2)
MIXTRAL = dict(SIZES, model_type='mixtral', num_local_experts=4)
OLMOE = dict(SIZES, model_type='olmoe', num_experts=4)
LLAMA = {key: value for key, value in SIZES.items() if 'experts' not in key} | dict(model_type='llama')
QWEN2 = dict(SIZES, model_type='qwen2_moe', num_experts=4, moe_intermediate_size=8,
             shared_expert_intermediate_size=8)
DEEPSEEK = dict(SIZES, model_type='deepseek', n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=8)


def configured(hf, say=print):
  name, family = fields.family(hf)
  return unread.configured(name, family, hf, hf.get('tie_word_embeddings', True), say)


# Configurations that never were, of layers, numbers and files that no model here has, and the field to blame.
QUANTISED = dict(quantization_config=dict(quant_method='gptq', bits=4))
MADE_UP = {
    'state spaces between': (dict(MIXTRAL, mamba_d_state=16, mamba_d_conv=4), 'mamba_d_state=16'),
    'attention in some layers': (dict(MIXTRAL, attn_layer_period=8), 'attn_layer_period=8'),
    'kinds of blocks': (dict(OLMOE, layers_block_type=['mamba', 'attention'] * 2), 'layers_block_type='),
    'linear attention': (dict(QWEN2, layer_types=['linear_attention'] * 4), 'layer_types='),
    'kinds of layers': (dict(OLMOE, layer_types=['conv', 'full_attention'] * 2), 'layer_types='),
    'a recurrence': (dict(LLAMA, lru_width=32), 'lru_width=32'),
    'short convolutions': (dict(LLAMA, conv_L_cache=3), 'conv_L_cache=3'),
    'attention in chunks': (dict(LLAMA, attention_chunk_size=8192), 'attention_chunk_size=8192'),
    'layers without positions': (dict(LLAMA, no_rope_layers=[1, 0, 1, 0]), 'no_rope_layers='),
    'keys chosen by an indexer': (dict(DEEPSEEK, index_topk=2048), 'index_topk=2048'),
    'capped logits': (dict(LLAMA, final_logit_softcapping=30.0), 'final_logit_softcapping=30.0'),
    'multipliers': (dict(MIXTRAL, embedding_multiplier=12.0), 'embedding_multiplier=12.0'),
    'biases': (dict(MIXTRAL, attention_bias=True), 'attention_bias=True'),
    'a window': (dict(OLMOE, sliding_window=64), 'sliding_window=64'),
    'attention beside the layer': (dict(LLAMA, use_parallel_residual=True), 'use_parallel_residual=True'),
    'numbers of four bits': (MIXTRAL | QUANTISED, 'quantization_config=.*gptq'),
    'numbers of four bits, dense': (LLAMA | QUANTISED, 'quantization_config=.*gptq'),
    'compressed tensors': (dict(OLMOE, compression_config=dict(format='int')), 'compression_config='),
    'another family': (dict(MIXTRAL, model_type='jamba'), "model_type='jamba'"),
    'a hybrid family': (dict(QWEN2, model_type='qwen3_next'), "model_type='qwen3_next'.*nearest: qwen3_moe"),
    'another head': (dict(LLAMA, architectures=['LlamaForTokenClassification']), 'TokenClassification'),
    'other positions': (dict(LLAMA, rope_scaling=dict(type='ntk', factor=2.0)), "type 'ntk'"),
    'part of a head': (dict(LLAMA, partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
    'another choice': (dict(DEEPSEEK, scoring_func='sigmoid'), "scoring_func='sigmoid'"),
}


@pytest.mark.parametrize('name', MADE_UP)
def test_made_up_configurations(name):
  hf, says = MADE_UP[name]
  with pytest.raises(errors.UserError, match=says) as caught:
    configured(hf)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize('hf', [MIXTRAL, OLMOE, LLAMA, QWEN2, DEEPSEEK], ids=lambda hf: hf['model_type'])
def test_the_rest_of_them_is_fine(hf):
  said = []
  harmless = dict(torch_dtype='bfloat16', _name_or_path='a/b', use_cache=True, attention_dropout=0.1,
                  initializer_range=0.02, auto_map=dict(AutoConfig='a.B'), bos_token_id=1,
                  eos_token_id=[2, 3], mamba_d_state=None, attention_chunk_size=0, use_sliding_window=False,
                  unsloth_version='1')
  configured(hf | harmless, said.append)
  assert said == []


def test_what_is_neither_is_told():
  said = []
  configured(dict(LLAMA, favourite_colour='blue'), said.append)
  assert len(said) == 1 and 'favourite_colour' in said[0]


@pytest.mark.parametrize('stored', sorted(path.name for path in STORED.iterdir()))
def test_every_family_refuses_what_it_does_not_read(stored):
  hf, said = json.loads((STORED / stored / 'config.json').read_text()), []
  configured(hf, said.append)
  assert said == []
  for field, value in dict(mamba_d_state=16, conv_kernel=4, linear_attn_config=dict(heads=2),
                           quantization=dict(bits=8)).items():
    with pytest.raises(errors.UserError, match=f'config.json: {field}='):
      configured(hf | {field: value})


def test_asking_is_remembered():
  asked = unread.Asked(dict(a=1, b=2, c=3, d=4))
  assert (asked.get('a'), asked['b'], 'c' in asked, (asked | dict(e=5)).get('e')) == (1, 2, True, 5)
  assert (dict(d=7, f=8) | asked).get('d') == 4 and asked.names == {'a', 'b', 'c', 'd', 'e'}


def test_families_have_files():
  assert {'llama', 'mistral', 'deepseek', 'nllb_moe', 'flex_olmo'} <= set(lookup.available('family'))
