"""A T5X checkpoint written from recorded tensors gives the recorded outputs, and goes on to Hugging Face."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts

from stmoe import errors
from stmoe.derive import convert
from stmoe.interop import t5x
from stmoe.interop import tensors as files
from tests.interop import runs

CASES = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
SLOTS = ['blocks.m.router.capacity_factor=(0.0,0.0)']                # the case has 4 slots an expert
NAMES = dict(q='query', k='key', v='value', o='out')


def t5x_tensors(case):
  """The tensors of a Switch or T5 case under T5X's names, experts stacked."""
  theirs = {name: t.read() for name, t in files.tensors(CASES / case).items()}
  take = lambda name: theirs.pop(name)
  made = {'token_embedder.embedding': take('shared.weight')}
  for stack, attentions, last in (('encoder', ['attention'], 1),
                                  ('decoder', ['self_attention', 'encoder_decoder_attention'], 2)):
    made[f'{stack}.{stack}_norm.scale'] = take(f'{stack}.final_layer_norm.weight')
    made[f'{stack}.relpos_bias.rel_embedding'] = take(
        f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight').T
    for i in range(sum(f'{stack}.block.{i}.layer.0.layer_norm.weight' in theirs for i in range(99))):
      block, layer = f'{stack}.block.{i}.layer.', f'{stack}.layers_{i}.'
      norms = [f'pre_{name}_layer_norm' for name in ('attention',) if stack == 'encoder'] or [
          'pre_self_attention_layer_norm', 'pre_cross_attention_layer_norm']
      for place, norm in enumerate([*norms, 'pre_mlp_layer_norm']):
        made[f'{layer}{norm}.scale'] = take(f'{block}{place}.layer_norm.weight')
      for place, (name, module) in enumerate(zip(attentions, ['SelfAttention', 'EncDecAttention'])):
        for short, long in NAMES.items():
          made[f'{layer}{name}.{long}.kernel'] = take(f'{block}{place}.{module}.{short}.weight').T
      mlp = f'{block}{last}.mlp.'
      if f'{mlp}router.classifier.weight' in theirs:
        made[f'{layer}mlp.router.router_weights.w.kernel'] = take(f'{mlp}router.classifier.weight').T
        for w in ('wi', 'wo'):
          made[f'{layer}mlp.expert.{w}.kernel'] = np.stack(
              [take(f'{mlp}experts.expert_{e}.{w}.weight').T for e in range(4)])
      for w in ('wi', 'wi_0', 'wi_1', 'wo'):
        for module in ('mlp', 'DenseReluDense'):
          if f'{block}{last}.{module}.{w}.weight' in theirs:
            made[f'{layer}mlp.{w}.kernel'] = take(f'{block}{last}.{module}.{w}.weight').T
  assert not theirs, sorted(theirs)
  return made


def write(folder, tensors):
  folder.mkdir(exist_ok=True)
  for name, x in tensors.items():
    spec = dict(driver='zarr', kvstore=dict(driver='file', path=f'{folder}/target.{name}/'),
                metadata=dict(compressor=dict(id='gzip', level=1), chunks=[max(1, n // 2) for n in x.shape]))
    ts.open(spec, create=True, dtype=x.dtype, shape=x.shape).result().write(x).result()
  (folder / 'checkpoint').write_bytes(b'msgpack, not read')


@pytest.mark.parametrize('name, overrides', [
    ('switch_drop_pad', SLOTS), pytest.param('t5_v11_tied_unscaled', [], marks=pytest.mark.slow)])
def test_outputs_and_the_way_to_hugging_face(name, overrides, tmp_path):
  source, run, out = tmp_path / 'in', tmp_path / 'run [2]\\', tmp_path / 'out'
  source.mkdir()
  write(source, t5x_tensors(name))
  source = source.rename(tmp_path / 'in [1]\\')                      # names that zarr's library does not take
  convert.read(source, run, overrides)
  cfg, model = runs.load(run)
  assert cfg.model.tie_embeddings
  with np.load(CASES / name / 'expected.npz') as want:
    logits = jax.jit(lambda m, b: m(b)[0])(model, runs.batch(want))
    # T5X's tied heads are scaled; one of the cases is not.
    logits = logits * (32 ** 0.5 if 'unscaled' in name else 1)
    assert (np.abs(logits - want['logits']) <= 1e-4 + 1e-4 * np.abs(want['logits'])).all()
  convert.write(run, out, to='switch_transformers' if overrides else 't5')
  old, new = files.tensors(CASES / name), files.tensors(out)
  assert sorted(new) == sorted(old) and all(files.equal(new[key], t) for key, t in old.items())


def test_damaged_arrays(tmp_path):
  write(tmp_path / 'good', {'decoder.decoder_norm.scale': np.ones(32, np.float32)})
  name = 'target.decoder.decoder_norm.scale'
  def lost(folder):
    (folder / name / '1').unlink()
  def cut(folder):
    (folder / name / '0').write_bytes((folder / name / '0').read_bytes()[:9])
  def objects(folder):
    file = folder / name / '.zarray'
    file.write_text(file.read_text().replace('<f4', '|O'))
  def emptied(folder):
    (folder / name / '.zarray').write_text('')
  def nested(folder):
    (folder / name / '.zarray').write_text('[' * 99_999)
  for change in (lost, cut, objects, emptied, nested):
    folder = tmp_path / change.__name__
    shutil.copytree(tmp_path / 'good', folder)
    change(folder)
    with pytest.raises(errors.Damaged, match='decoder_norm') as caught:
      t5x.tensors(folder)['decoder/decoder_norm/scale'].read()
    assert '\n' not in str(caught.value)


def test_mistakes(tmp_path):
  tensors = t5x_tensors('t5_v11_tied_unscaled')
  for name, change, says in (
      ('missing', lambda t: t.pop('decoder.decoder_norm.scale'), 'missing: decoder/decoder_norm/scale'),
      ('no table', lambda t: t.pop('token_embedder.embedding'), 'missing: token_embedder/embedding'),
      ('unknown', lambda t: t.update({'encoder.extra.wo.kernel': np.zeros(3, np.float32)}), 'encoder/extra'),
      ('integers', lambda t: t.update({'decoder.decoder_norm.scale': np.zeros(32, np.int32)}), 'int32')):
    source, changed = tmp_path / name, dict(tensors)
    source.mkdir()
    change(changed)
    write(source, changed)
    with pytest.raises(errors.UserError, match=says):
      convert.read(source, tmp_path / 'run')
    assert not (tmp_path / 'run').exists() and not list(tmp_path.glob('.run*'))
