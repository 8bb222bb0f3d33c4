"""gpt-oss with other options against a decoder written out in numpy; tensors in MXFP4 both ways."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

from stmoe import errors
from stmoe.derive import convert
from stmoe.derive import pieces
from stmoe.interop import fields
from stmoe.interop import repacked
from stmoe.interop import tensors as files
from stmoe.interop.families import mixtral
from stmoe.interop.packings import mxfp4
from tests.interop import runs
from tests.interop import sublayers

# As released, in transformers 4's spelling.
RELEASED = dict(
    architectures=['GptOssForCausalLM'], model_type='gpt_oss', vocab_size=40, hidden_size=32, head_dim=8,
    intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, sliding_window=3,
    num_local_experts=5, num_experts_per_tok=2, experts_per_token=2, hidden_act='silu', rms_norm_eps=1e-5,
    swiglu_limit=7.0, rope_theta=150000, initial_context_length=4096, tie_word_embeddings=False,
    attention_bias=True, bos_token_id=1, eos_token_id=2,
    rope_scaling=dict(rope_type='yarn', factor=4.0, beta_fast=4.0, beta_slow=0.5, truncate=False,
                      original_max_position_embeddings=12))
PLAIN = dict(rope_theta=None, rope_scaling=None, rope_parameters=dict(rope_type='default', rope_theta=1e4))
CASES = {
    'released': {},
    'clamped': dict(swiglu_limit=0.7, swiglu_alpha=0.9, attention_bias=False, tie_word_embeddings=True,
                    head_dim=None, num_key_value_heads=None, rms_norm_eps=0.1, **PLAIN),
    'windows': dict(layer_types=['full_attention', 'full_attention', 'sliding_attention'], sliding_window=5,
                    num_experts_per_tok=3, experts_per_token=None, num_local_experts=None, num_experts=7,
                    **PLAIN),
    'all windowed': dict(layer_types=['sliding_attention'] * 3, intermediate_size=20, **PLAIN),
    'none windowed': dict(layer_types=['full_attention'] * 3, sliding_window=None, hidden_size=24, **PLAIN),
    'positions as nowhere said': dict(rope_theta=None, rope_scaling=None),
}


def config(name):
  hf = RELEASED | CASES[name]
  return {key: value for key, value in hf.items() if key not in CASES[name] or value is not None or key in (
      'head_dim', 'num_key_value_heads', 'sliding_window')}


def tensors(hf):
  """Dict name -> f32 tensor of a random model of a config.json."""
  d, f, heads = hf['hidden_size'], hf['intermediate_size'], hf['num_attention_heads']
  experts, vocabulary = hf.get('num_local_experts') or hf['num_experts'], hf['vocab_size']
  shapes = sublayers.linear_shapes('model.embed_tokens', vocabulary, d)
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    bank = layer + 'mlp.experts.'
    shapes |= sublayers.attention_shapes(hf, layer + 'self_attn.', 'qkvo' if hf['attention_bias'] else '')
    shapes[layer + 'self_attn.sinks'] = heads,
    shapes |= {f'{layer}{part}_layernorm.weight': (d,) for part in ('input', 'post_attention')}
    shapes |= sublayers.linear_shapes(layer + 'mlp.router', experts, d, biased=True)
    shapes |= {f'{bank}gate_up_proj': (experts, d, 2 * f), f'{bank}gate_up_proj_bias': (experts, 2 * f),
               f'{bank}down_proj': (experts, f, d), f'{bank}down_proj_bias': (experts, d)}
  shapes['model.norm.weight'] = d,
  if not hf['tie_word_embeddings']:
    shapes |= sublayers.linear_shapes('lm_head', vocabulary, d)
  scales = dict(sinks=2.0, gate_up_proj=1.5 * d ** -0.5, down_proj=f ** -0.5)      # and biases: 0.5
  return sublayers.drawn(shapes, lambda rng, name, shape: rng.normal(
      0, scales.get(name.rpartition('.')[2], 0.5), shape))


def logits(hf, made, ids):
  """f64[B,T,V] of ids [B,T], token by token."""
  return sublayers.logits(made, ids, lambda t, row: states(hf, t, row))


def states(hf, t, ids):
  kinds = hf.get('layer_types') or ['sliding_attention', 'full_attention'] * hf['num_hidden_layers']
  norm = lambda x, name: sublayers.norm(t, name, x, hf['rms_norm_eps'])
  x = t['model.embed_tokens.weight'][ids]                            # [T, D]
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    window = hf['sliding_window'] if kinds[i] == 'sliding_attention' else len(x)
    x = x + attention(hf, t, layer + 'self_attn.', norm(x, layer + 'input_layernorm'), window)
    y = norm(x, layer + 'post_attention_layernorm')
    x = x + np.stack([experts(hf, t, layer + 'mlp.', token) for token in y])
  return norm(x, 'model.norm')


def experts(hf, t, name, x):
  limit, alpha = hf.get('swiglu_limit', 7.0), hf.get('swiglu_alpha', 1.702)
  scores = sublayers.linear(t, f'{name}router', x)                   # [E]
  chosen = np.argsort(-scores)[:hf['num_experts_per_tok']]
  y, bank = 0, f'{name}experts.'
  for e, gate in zip(chosen, sublayers.softmax(scores[chosen])):
    h = x @ t[f'{bank}gate_up_proj'][e] + t[f'{bank}gate_up_proj_bias'][e]
    g, up = np.minimum(h[::2], limit), np.clip(h[1::2], -limit, limit)
    y = y + gate * ((up + 1) * g / (1 + np.exp(-alpha * g)) @ t[f'{bank}down_proj'][e] + t[
        f'{bank}down_proj_bias'][e])
  return y


def attention(hf, t, name, x, window):
  p = sublayers.width(hf)
  q, k, v = (sublayers.linear(t, f'{name}{m}_proj', x).reshape(len(x), -1, p) for m in 'qkv')  # [T, H, P]
  q, k = (sublayers.turned(y, *positions(hf, p // 2)) for y in (q, k))
  out = sublayers.attended(q, k, v, p ** -0.5, window, t[f'{name}sinks'])            # [T, H*P]
  return sublayers.linear(t, f'{name}o_proj', out)


def positions(hf, pairs):
  """(rates [pairs], size of cos and sin); the borders of YaRN are not rounded."""
  said = hf.get('rope_parameters') or hf.get('rope_scaling') or dict(
      rope_type='yarn', factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=4096)
  base = said.get('rope_theta') or hf.get('rope_theta') or 150000.0
  rate = base ** (-np.arange(pairs) / pairs)
  if said['rope_type'] != 'yarn':
    return rate, 1.0
  border = lambda turns: pairs * math.log(
      said['original_max_position_embeddings'] / (turns * 2 * math.pi)) / math.log(base)
  low, high = max(border(said['beta_fast']), 0), min(border(said['beta_slow']), 2 * pairs - 1)
  slow = np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
  return rate * (1 - slow) + rate / said['factor'] * slow, 0.1 * math.log(said['factor']) + 1


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'released')) for name in CASES])
def test_logits(name):
  """Within 1e-5 of numbers of unit order."""
  hf = config(name)
  made, ids = tensors(hf), runs.ids(2, 20)
  found = runs.logits(runs.filled(hf, made), ids)
  wanted = logits(hf, made, ids)
  assert 0.5 < wanted.std() < 5
  np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('changes, says', [
    (dict(layer_types=['full_attention'] * 2), 'layer_types names 2 layers, and num_hidden_layers=3'),
    (dict(layer_types=['full_attention', 'chunked_attention', 'full_attention']),
     'layer_types.*full_attention'),
    (dict(sliding_window=None), 'no sliding_window'), (dict(hidden_act='gelu'), "nearest: 'silu'"),
    (dict(num_experts=6), 'num_local_experts=5 and num_experts=6'),
    (dict(experts_per_token=3), 'num_experts_per_tok=2 and experts_per_token=3'),
    (dict(rope_scaling=None), 'rope_scaling=null is plain'), (dict(swiglu_limit=0), 'swiglu_limit'),
    (dict(num_experts_per_tok=1, experts_per_token=1), 'num_experts_per_tok=1')])
def test_refused(changes, says):
  hf = RELEASED | changes
  with pytest.raises(errors.UserError, match=says):
    fields.family(hf)[1].configure(hf, False)


def test_an_export_without_the_import_is_the_same_model():
  hf = config('windows')
  family = fields.family(hf)[1]
  sections = family.configure(hf, False)
  again = family.configure(family.describe(sections), False)
  assert fields.differences(sections, again) == []
  sections['blocks']['M']['window'] = 6
  assert [text.rpartition('.')[2] for text in fields.differences(sections, again)] == ['window is 6, not 5']


def test_numbers_of_four_bits_are_rounded_to_the_nearest_even_in_the_middle():
  x = np.zeros((1, 32), np.float32)
  x[0, :18] = [6, .25, .26, .75, 1.25, 1.75, 2.5, 3.5, 5, 5.1, -.25, -.74, -.76, -1.25, -4.9, -5, 0, -0.]
  blocks, scales = mxfp4.packed(x)
  assert scales.tolist() == [[127]]
  assert mxfp4.numbers(blocks, scales)[0, :18].tolist() == [
      6, 0, .5, 1, 1, 2, 2, 4, 4, 6, 0, -.5, -1, -1, -4, -4, 0, 0]
  assert blocks[0, 0, 8] == 0x80                                     # 0 and -0, the first number is below
  for factor in (2.0 ** -60, 2.0 ** 60, 1.3, 7.9 / 6):               # its largest number has 4 to 8 quarters
    _, scales = mxfp4.packed(factor * x)
    assert 4 <= 6 * factor / 2.0 ** (int(scales[0, 0]) - 127) < 8


def quantised(folder, hf):
  """Writes a checkpoint with experts in MXFP4 of any bytes; returns dict name -> f32 array that they mean."""
  rng, stored, want = np.random.default_rng(1), {}, {}
  for name, x in tensors(hf).items():
    if not name.endswith(('gate_up_proj', 'down_proj')):
      stored[name] = x.astype(ml_dtypes.bfloat16)
      want[name] = stored[name].astype(np.float32)
      continue
    blocks = rng.integers(0, 256, (len(x), x.shape[2], x.shape[1] // 32, 16), np.uint8)
    blocks[0, 0] = 0x80                                              # zeros of both signs
    blocks[0, 1] &= 0x33                                             # nothing as large as it may be
    scales = rng.integers(120, 125, blocks.shape[:-1]).astype(np.uint8)
    stored |= {f'{name}_blocks': blocks, f'{name}_scales': scales}
    table = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    pairs = np.stack([table[blocks & 15], table[blocks >> 4]], -1) * 2.0 ** (scales[..., None, None] - 127.0)
    want[name] = pairs.reshape(len(x), x.shape[2], x.shape[1]).swapaxes(1, 2).astype(np.float32)
  section = dict(quant_method='mxfp4', modules_to_not_convert=['model.layers.*.self_attn', 'lm_head'])
  runs.save(folder, hf | dict(quantization_config=section), stored)
  return want


def said(folder):
  return json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('block', [pytest.param(1 << 25, marks=pytest.mark.slow), 4 * 32 * 32])
def test_mxfp4_comes_back_as_it_was_and_goes_on_as_something_else(tmp_path, monkeypatch, block):
  """Whole, and in blocks of 32 rows; with the numbers in other forms in between."""
  monkeypatch.setattr(pieces, 'BLOCK', block)
  at = lambda name: tmp_path / name
  hf = RELEASED | dict(hidden_size=64, num_hidden_layers=2)
  want = quantised(at('in'), hf)
  convert.read(at('in'), at('run'))
  convert.write(at('run'), at('out'))
  runs.assert_equal(at('out'), at('in'))
  assert (at('out') / 'config.json').read_bytes() == (at('in') / 'config.json').read_bytes()
  convert.write(at('run'), at('half'), dtype='BF16')
  made = files.tensors(at('half'))
  assert {name: t.dtype for name, t in made.items()} == dict.fromkeys(want, 'BF16') and said(at('half')) == hf
  for name, x in want.items():
    np.testing.assert_array_equal(made[name].read().astype(np.float32), x, err_msg=name)
  convert.read(at('half'), at('again'))
  convert.write(at('again'), at('packed'), dtype='MXFP4')
  assert said(at('packed'))['quantization_config']['quant_method'] == 'mxfp4'
  convert.read(at('packed'), at('last'))                             # other scales, the same numbers
  convert.write(at('last'), at('unpacked'), dtype='BF16')
  runs.assert_equal(at('unpacked'), at('half'))
  first, other = files.tensors(at('in')), files.tensors(at('packed'))
  assert not all(files.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_a_packed_model_computes_as_its_numbers_do(tmp_path):
  want = quantised(tmp_path / 'in', RELEASED)
  convert.read(tmp_path / 'in', tmp_path / 'run')
  cfg, model = runs.load(tmp_path / 'run')
  assert cfg.model.param_dtype == 'bfloat16'
  ids = runs.ids(1, 20)
  found = runs.logits(model, ids)
  wanted = logits(RELEASED, want, ids)
  np.testing.assert_allclose(found, wanted, atol=2e-5 * wanted.std(), rtol=1e-5)
  runs.assert_goes_on(model, ids[:, :6], lambda ids: logits(RELEASED, want, ids))


def test_what_mxfp4_cannot_hold(tmp_path):
  hf = RELEASED | dict(hidden_size=24, num_hidden_layers=1)
  runs.save(tmp_path / 'in', hf, tensors(hf))
  convert.read(tmp_path / 'in', tmp_path / 'run')
  with pytest.raises(errors.UserError, match=r'gate_up_proj is \[5, 24, 64\].*blocks of 32 of its 24 rows'):
    convert.write(tmp_path / 'run', tmp_path / 'out', dtype='MXFP4')
  assert not (tmp_path / 'out').exists()
  with pytest.raises(errors.UserError, match='MixtralForCausalLM has no such tensors'):
    repacked.kinds(mixtral, {}, 'MXFP4')
