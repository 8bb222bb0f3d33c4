"""What a config.json says and what becomes of it: rotary fields, epsilons, layers, ids; else one line."""

import json
import pathlib
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.derive import convert
from stmoe.derive.conversion import exporting
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir
from tests.interop import runs

CASES = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
MIXTRAL, T5 = CASES / 'mixtral_window_pad', CASES / 't5_v11_tied_unscaled'


def config(case, **changes):
  return json.loads((CASES / case / 'config.json').read_text()) | changes


def configure(case, **changes):
  hf = config(case, **changes)
  return fields.family(hf)[1].configure(hf, False)


def build(sections):
  """The model of sections model and blocks, of shapes."""
  make = lookup.recipe('model', sections['model'])
  return nnx.eval_shape(lambda: make(blocks=sections['blocks'], rngs=nnx.Rngs(0)))


YARN = dict(rope_type='yarn', rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096,
            beta_fast=32.0, beta_slow=1.0)


def ramp(yarn, pairs):
  """How much each pair of section `rotary_scaling` is slowed, 0 to 1."""
  rate, factor = jnp.ones(pairs), yarn['factor']
  scaling = lookup.recipe('rotary_scaling', yarn)()
  return (1 - scaling(rate, 150000.0, jnp.float32(1))[0]) / (1 - 1 / factor)


def test_the_borders_of_yarn_are_rounded_unless_truncate_is_false():
  """32 pairs of gpt-oss: 32 turns in 4,096 positions are pair 8.09, 1 turn is pair 17.40 (by hand)."""
  _, rounded, _ = decoder.rope(dict(rope_parameters=YARN))
  _, exact, _ = decoder.rope(dict(rope_parameters=YARN | dict(truncate=False)))
  assert 'truncate' not in rounded and exact == rounded | dict(truncate=False)
  np.testing.assert_allclose(ramp(rounded, 32)[jnp.array([8, 9, 17, 18])], [0, 1 / 10, 9 / 10, 1], atol=1e-5)
  np.testing.assert_allclose(ramp(exact, 32)[jnp.array([8, 9, 17, 18])],
                             [0, (9 - 8.0927) / 9.3052, (17 - 8.0927) / 9.3052, 1], atol=1e-3)


def test_scales_of_yarn():
  size = lambda **more: decoder.rope(dict(rope_parameters=YARN | more))[1]['size']
  assert size() == pytest.approx(0.1 * np.log(32) + 1)
  assert size(attention_factor=1.5) == 1.5
  both = (0.0707 * np.log(32) + 1) / (0.1 * np.log(32) + 1)
  assert size(mscale=0.707, mscale_all_dim=1.0) == pytest.approx(both)
  assert size(mscale=0.707) == size()                                # only both count


def test_both_spellings_say_the_same():
  old = {('type' if key == 'rope_type' else key): v for key, v in YARN.items() if key != 'rope_theta'}
  assert decoder.rope(dict(rope_theta=150000.0, rope_scaling=old)) == decoder.rope(dict(rope_parameters=YARN))
  assert decoder.rope({}, theta=1e6)[0] == 1e6
  assert configure(MIXTRAL.name, rope_parameters=None)['model']['rotary_base'] == 1e6      # Mixtral's default


LENGTH = dict(original_max_position_embeddings=256)
SCALED = {
    'linear': dict(factor=3.0),
    'dynamic': dict(factor=3.0),
    'llama3': LENGTH | dict(factor=4.0, low_freq_factor=1.5, high_freq_factor=5.0),
    'longrope': LENGTH | dict(short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 2.0, 3.0, 4.5],
                              short_mscale=1.1, long_mscale=1.3),
    'yarn': LENGTH | dict(factor=8.0, attention_factor=1.2, beta_fast=16, truncate=False),
}


@pytest.mark.parametrize('kind', lookup.available('rotary_scaling'))
def test_scaled_positions_are_described(kind):
  """Also where an imported config.json says other positions: nothing of them is left."""
  scaled = dict(rope_parameters=dict(rope_type=kind, rope_theta=5e4, **SCALED[kind]), rope_theta=None)
  sections = configure(MIXTRAL.name, **scaled)
  family = fields.family(config(MIXTRAL.name))[1]
  assert fields.differences(sections, family.configure(family.describe(sections), False)) == []
  others = dict(rope_theta=1e3, rope_parameters=None, rope_scaling=dict(type='yarn', factor=2.0, **LENGTH))
  imported = config(MIXTRAL.name, **others)
  described = exporting.described(imported, family, sections)
  assert fields.differences(sections, family.configure(described, False)) == []
  assert described['rope_scaling'] == {key: value for key, value in described['rope_parameters'].items()
                                       if key != 'rope_theta'}
  plain = configure(MIXTRAL.name)
  described = exporting.described(imported, family, plain)
  assert fields.differences(plain, family.configure(described, False)) == []


def test_the_factor_of_deepseeks_logits_is_described():
  scaled = dict(rope_type='yarn', rope_theta=1e4, factor=40.0, mscale=0.707, mscale_all_dim=0.707, **LENGTH)
  family = fields.family(config('deepseek_v2'))[1]
  sections = family.configure(config('deepseek_v2', rope_parameters=scaled), False)
  described = family.describe(sections)
  assert described['rope_parameters']['mscale_all_dim'] == 0.707
  assert fields.differences(sections, family.configure(described, False)) == []


def test_activation_functions_are_described_as_they_are_read():
  for name, ours in (('gelu_pytorch_tanh', 'gelu'), ('swish', 'silu'), ('relu', 'relu')):
    sections = configure(MIXTRAL.name, hidden_act=name)
    assert sections['blocks']['m']['experts']['activation'] == ours
    family = fields.family(config(MIXTRAL.name))[1]
    assert fields.differences(sections, family.configure(family.describe(sections), False)) == []


REFUSED = {
    'a field of another type': (dict(rope_parameters=YARN | dict(low_freq_factor=1.0)), 'low_freq_factor'),
    'a field without its type': (dict(rope_parameters=dict(factor=2.0)), 'factor=2.0'),
    'part of the head': (dict(rope_parameters=dict(partial_rotary_factor=0.5)), 'partial_rotary'),
    'two bases': (dict(rope_theta=1e4, rope_parameters=dict(rope_theta=5e5)), 'rope_theta.*twice'),
    'two groups': (dict(rope_parameters=YARN, rope_scaling=dict(type='linear')), 'rope_type.*twice'),
    'no factor': (dict(rope_parameters=dict(rope_type='yarn')), 'need factor'),
    'text for a number': (dict(rope_parameters=YARN | dict(factor='8')), "factor='8': expected a number"),
    'text for a flag': (dict(rope_parameters=YARN | dict(truncate='no')), 'truncate'),
    'negative': (dict(rope_parameters=YARN | dict(beta_fast=-1)), 'beta_fast'),
    'by layer': (dict(rope_parameters=dict(full_attention=YARN)), 'full_attention'),
    'a list': (dict(rope_scaling=[1]), 'rope_scaling'),
    'a type': (dict(rope_scaling=dict(rope_type='dynamik', factor=2.0)), 'dynamik'),
    'quantised': (dict(quantization_config=dict(quant_method='fp8')), 'quantization_config'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_read_and_not_supported_is_refused_by_name(name):
  changes, says = REFUSED[name]
  hf = {key: v for key, v in config(MIXTRAL.name).items() if not key.startswith('rope')} | changes
  with pytest.raises(errors.UserError, match=says):
    fields.family(hf)[1].configure(hf, False)


@pytest.mark.parametrize('stored, changes, says', [
    ('qwen2_moe', dict(use_sliding_window=True, sliding_window=4), 'layer_types'),
    ('qwen2_moe', dict(layer_types=['full_attention', 'sliding_attention', 'full_attention']), 'layer_types'),
    ('deepseek_v2', dict(mlp_bias=True), 'mlp_bias'),
    ('deepseek_v2', dict(num_key_value_heads=1), 'num_key_value_heads'),
    ('switch_drop_pad', dict(router_dtype='bfloat16'), 'router_dtype'),
    ('switch_drop_pad', dict(encoder_sparse_step=1), 'encoder_sparse_step'),
    (T5.name, dict(dense_act_fn='relu'), 'dense_act_fn'),
    (T5.name, dict(is_gated_act=False), 'is_gated_act'),
    (T5.name, dict(feed_forward_proj=['relu']), 'feed_forward_proj'),
    (T5.name, dict(is_encoder_decoder=False), 'is_encoder_decoder'),
])
def test_fields_that_change_the_numbers_are_not_ignored(stored, changes, says):
  with pytest.raises(errors.UserError, match=says):
    configure(stored, **changes)


@pytest.mark.parametrize('stored', sorted(path.name for path in CASES.iterdir()))
def test_an_epsilon_is_that_of_all_norms_and_comes_back(stored):
  hf = config(stored, **{'layer_norm_epsilon' if 'd_kv' in config(stored) else 'rms_norm_eps': 0.37})
  family = fields.family(hf)[1]
  sections = family.configure(hf, False)
  model = build(sections)
  found = {path[-1]: m.epsilon for path, m in nnx.iter_graph(model) if hasattr(m, 'epsilon')}
  # Those of compressed vectors have an epsilon of their own in DeepSeek, 1e-6.
  own = {'q_norm': 1e-6, 'kv_norm': 1e-6} if 'deepseek' in stored else {}
  assert found and all(epsilon == own.get(name, 0.37) for name, epsilon in found.items()), found
  again = family.configure(family.describe(sections), False)
  assert fields.differences(sections, again) == []


def test_biases_of_latent_attention_have_their_tensors():
  family = fields.family(config('deepseek_v2'))[1]
  for rank in (6, None):
    sections = family.configure(config('deepseek_v2', attention_bias=True, q_lora_rank=rank), False)
    params = nnx.to_pure_dict(nnx.state(build(sections), nnx.Param))
    there = {place.tensor: place.there for place in rules.places(dict(params=params), family.table(sections))}
    ours = {name.split('.')[4]: there[name] for name in there if name.startswith('model.layers.0.self_attn.')
            and name.endswith('.bias')}
    attention = sections['model']['attention']
    width = attention['kv_rank'] + sections['model']['head_dim']
    assert ours == {'kv_a_proj_with_mqa': (width,), 'o_proj': (sections['model']['d_model'],)} | (
        dict(q_a_proj=(rank,)) if rank else {})
    assert fields.differences(sections, family.configure(family.describe(sections), False)) == []
  assert family.describe(sections)['attention_bias'] is True


def test_three_leading_dense_layers_are_numbered_through():
  hf = config('deepseek_v2', num_hidden_layers=6, first_k_dense_replace=3, q_lora_rank=None,
              rope_parameters=None)
  family = fields.family(hf)[1]
  sections = family.configure(hf, False)
  assert sections['model']['layers'] == (('d', 3), ('m', 3))
  assert family.describe(sections)['first_k_dense_replace'] == 3
  params = nnx.to_pure_dict(nnx.state(build(sections), nnx.Param))
  found = {place.tensor: (*place.leaf[3:4], *place.index) for place in rules.places(
      dict(params=params), family.table(sections))}
  at = lambda i, rest: found[f'model.layers.{i}.{rest}']
  for i in range(3):
    assert at(i, 'mlp.gate_proj.weight') == (0, i)
    assert at(3 + i, 'mlp.gate.weight') == (1, i)
    assert at(3 + i, 'mlp.experts.2.up_proj.weight') == (1, i, 2)
    assert at(3 + i, 'self_attn.o_proj.weight') == (1, i)
  assert 'model.layers.6.input_layernorm.weight' not in found


@pytest.mark.parametrize('said, generation, name, wanted', [
    (dict(bos_token_id=1, eos_token_id=2), {}, 'lm', dict(start_id=1, end_ids=(2,))),
    (dict(bos_token_id=5, eos_token_id=2), dict(eos_token_id=[2, 9]), 'lm', dict(start_id=5, end_ids=(2, 9))),
    (dict(bos_token_id=None, eos_token_id=7), {}, 'lm', dict(start_id=7, end_ids=(7,))),
    (dict(bos_token_id=0, eos_token_id=1), {}, 'lm', {}),
    ({}, {}, 'lm', {}),
    (dict(bos_token_id=3, eos_token_id=1, decoder_start_token_id=0), {}, 't5', {}),
    (dict(eos_token_id=1, decoder_start_token_id=4, pad_token_id=0), {}, 't5', dict(start_id=4)),
])
def test_start_and_ends_are_the_model_s_own(said, generation, name, wanted):
  assert fields.ids(said, generation, dict(name=name, vocab_size=10)) == wanted


@pytest.mark.parametrize('said', [dict(bos_token_id='<s>'), dict(eos_token_id=10), dict(eos_token_id=[1, -1]),
                                  dict(bos_token_id=True)])
def test_ids_that_are_none(said):
  with pytest.raises(errors.UserError, match='no id'):
    fields.ids(said, {}, dict(name='lm', vocab_size=10))


def test_a_decoder_start_id_is_where_decoding_starts_and_is_exported(tmp_path):
  source = shutil.copytree(T5, tmp_path / 'in')
  file = source / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | dict(decoder_start_token_id=7)))
  (source / 'generation_config.json').unlink(missing_ok=True)
  convert.read(source, tmp_path / 'run')
  cfg, model = runs.load(tmp_path / 'run')
  assert cfg.model.start_id == 7
  batch = runs.row('encoder', np.array([[5, 6, 7]])) | runs.row('decoder', np.array([[7]]))
  first, logits = jax.jit(lambda m, b: (m.begin(b, 1)[0], m(b)[0]))(model, batch)
  np.testing.assert_allclose(first, logits[:, 0], rtol=1e-4, atol=1e-4)
  convert.write(tmp_path / 'run', tmp_path / 'out')
  assert (tmp_path / 'out' / 'config.json').read_bytes() == file.read_bytes()
  (tmp_path / 'run' / 'imported.json').unlink()
  convert.write(tmp_path / 'run', tmp_path / 'described', to='t5')
  assert json.loads((tmp_path / 'described' / 'config.json').read_text())['decoder_start_token_id'] == 7


def test_dtypes_of_an_import_are_such(tmp_path):
  convert.read(MIXTRAL, tmp_path / 'run')
  file = tmp_path / 'run' / 'imported.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | dict(dtypes={'lm_head.weight': 'Q4'})))
  with pytest.raises(errors.Damaged, match="imported.json.*dtype 'Q4'"):
    convert.write(tmp_path / 'run', tmp_path / 'out')


def test_parameters_are_no_integers(tmp_path):
  source = shutil.copytree(MIXTRAL, tmp_path / 'in')
  file = source / 'model.safetensors'
  file.write_bytes(file.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
  with pytest.raises(errors.UserError, match='is of dtype I32'):
    convert.read(source, tmp_path / 'run')
  assert files.tensors(source) and not (tmp_path / 'run').exists()


def test_a_model_without_vocabulary_says_so_and_one_is_given(tmp_path):
  pieces = CASES.parent / 'sentencepiece' / 'seqio_test_26.model'
  convert.read(MIXTRAL, tmp_path / 'run', [f'data.vocab={pieces}'])
  assert rundir.load(tmp_path / 'run').data.vocab == str((tmp_path / 'run' / 'vocabulary.model').resolve())
  convert.read(MIXTRAL, tmp_path / 'none')
  assert rundir.load(tmp_path / 'none').data.vocab == ''


def test_one_normalised_choice_is_refused_and_never_written():
  """transformers divides a single gate by itself: 1; the routers here leave it the probability."""
  for case in ('mixtral_window_pad', 'qwen2_moe'):
    with pytest.raises(errors.UserError, match='num_experts_per_tok=1 with gates over their sum'):
      configure(case, num_experts_per_tok=1, norm_topk_prob=True)
  blocks = configure('qwen2_moe', num_experts_per_tok=1, norm_topk_prob=False)['blocks']
  router = blocks['m']['inner']['router']
  assert router['k'] == 1 and not router['normalize_gates']
  assert not decoder.normalized(router | dict(normalize_gates=True))
