"""Packed checkpoints: what is read of them equals a plain computation in numpy; others are refused."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from stmoe import errors
from stmoe.derive import convert
from stmoe.derive.conversion import importing
from stmoe.interop import tensors as files
from stmoe.interop.packings import fp8

CASES = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
CASE = CASES / 'deepseek_v3_yarn'
FP8 = dict(quant_method='fp8', fmt='e4m3', activation_scheme='dynamic', weight_block_size=[7, 5])
ONE = 'model.layers.1.mlp.experts.0.up_proj.weight'


def written(folder, layout, values):
  """Writes `values`, dict name -> array, as safetensors of the dtypes `layout` into `folder`."""
  made = files.create(folder, {name: (layout[name], x.shape) for name, x in values.items()}, 10**9)
  for name, x in values.items():
    made[name].write(0, x)


def packed(folder, **fields):
  """Writes CASE with its matrices in eight bits; returns dict name -> f32 array that they mean."""
  folder.mkdir()
  hf = json.loads((CASE / 'config.json').read_text()) | dict(quantization_config=FP8 | fields)
  (folder / 'config.json').write_text(json.dumps(hf))
  rng, values, layout, want = np.random.default_rng(0), {}, {}, {}
  for name, tensor in files.tensors(CASE).items():
    x = np.asarray(tensor.read())
    values[name], layout[name], want[name] = x, 'F32', x
    if name.endswith('_proj.weight') and 'kv_b' not in name:
      high, wide = FP8['weight_block_size']
      scales = rng.uniform(1e-3, 2e-3, (-(-x.shape[0] // high), -(-x.shape[1] // wide))).astype(np.float32)
      rows, columns = np.arange(x.shape[0]) // high, np.arange(x.shape[1]) // wide
      factors = scales[np.ix_(rows, columns)]
      values[name] = (x / factors).astype(ml_dtypes.float8_e4m3fn)
      values[name + fp8.SCALES], layout[name], layout[name + fp8.SCALES] = scales, fp8.PACKED, 'F32'
      want[name] = values[name].astype(np.float32) * factors
  written(folder, layout, values)
  return want


def test_eight_bits_times_their_scales(tmp_path):
  want = packed(tmp_path / 'in')
  convert.read(tmp_path / 'in', tmp_path / 'run')
  convert.write(tmp_path / 'run', tmp_path / 'out')
  made = files.tensors(tmp_path / 'out')
  assert {name: t.dtype for name, t in made.items()} == dict.fromkeys(want, 'F32')
  for name, x in want.items():
    np.testing.assert_array_equal(made[name].read(), x, err_msg=name)
  assert np.unique(want[ONE]).size > 50                              # not all zeros, not all the largest
  assert json.loads((tmp_path / 'out' / 'config.json').read_text()) == json.loads(
      (CASE / 'config.json').read_text())


def test_any_rows_are_the_same_rows(tmp_path):
  want = packed(tmp_path / 'in')
  _, _, _, found, _ = importing.opened(tmp_path / 'in')
  for first, last in ((0, None), (3, 4), (5, 9), (7, 14), (13, 16)):
    np.testing.assert_array_equal(found[ONE].read(first, last), want[ONE][first:last])


@pytest.mark.parametrize('fields, words', [
    (dict(quant_method='awq'), ("quantization_config.quant_method='awq'", 'there are: fp8')),
    (dict(activation_scheme='static'), ("activation_scheme='static'", "nearest: 'dynamic'")),
    (dict(weight_block_size=[128]), ('weight_block_size=[128]', 'nearest: [128, 128]')),
    (dict(weight_block_size=[4, 4]), (fp8.SCALES, 'in blocks of [4, 4]')),
    (dict(weight_bloc_size=[4, 4]), ('weight_bloc_size', 'nearest: weight_block_size')),
])
def test_what_is_not_supported_is_refused(tmp_path, fields, words):
  packed(tmp_path / 'in', **fields)
  with pytest.raises(errors.UserError) as caught:
    convert.read(tmp_path / 'in', tmp_path / 'run')
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value), caught.value
  assert not (tmp_path / 'run').exists()


def test_eight_bits_without_scales_are_no_parameter(tmp_path):
  packed(tmp_path / 'in')
  values = {name: np.asarray(t.read()) for name, t in files.tensors(tmp_path / 'in').items()}
  del values[ONE + fp8.SCALES]
  (tmp_path / 'in' / 'model.safetensors').unlink()
  kinds = {name: fp8.PACKED if x.dtype.itemsize == 1 else 'F32' for name, x in values.items()}
  written(tmp_path / 'in', kinds, values)
  with pytest.raises(errors.UserError, match=f'{ONE}{fp8.SCALES} is missing'):
    convert.read(tmp_path / 'in', tmp_path / 'run')
