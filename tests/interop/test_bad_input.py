"""What is wrong with a checkpoint is one line and exit code 2, and leaves nothing behind."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as theirs

from stmoe.checkpoints import seal
from stmoe.cli import main

CASES = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
PIECES = CASES.parent / 'sentencepiece' / 'seqio_test_26.model'
T5, MIXTRAL = 't5_v11_tied_unscaled', 'mixtral_window_pad'


def edit_config(folder, **fields):
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(folder, change):
  file = folder / 'model.safetensors'
  tensors = theirs.load_file(file)
  change(tensors)
  theirs.save_file(tensors, file)


def cut(folder, size):
  with (folder / 'model.safetensors').open('r+b') as f:
    f.truncate(size)


def pickles(folder):
  (folder / 'model.safetensors').unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'never opened')


def second_file(folder):
  shutil.copyfile(folder / 'model.safetensors', folder / 'b.safetensors')


def index(folder, name='lost.weight', file='model.safetensors'):
  (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={name: file})))


NORM = 'decoder.final_layer_norm.weight'
WRONG = {
    'another family': (T5, lambda d: edit_config(d, model_type='mixtrel'), ('mixtrel', 'nearest: mixtral')),
    'another architecture': (T5, lambda d: edit_config(d, architectures=['T5EncoderModel']),
                             ('T5EncoderModel', 'nearest: T5ForConditionalGeneration')),
    'no family': (T5, lambda d: edit_config(d, model_type=None), ('model_type', 'mixtral')),
    'no config': (T5, lambda d: (d / 'config.json').unlink(), ('config.json',)),
    'broken config': (T5, lambda d: (d / 'config.json').write_text('{'), ('config.json', 'not JSON')),
    'a field is missing': (T5, lambda d: edit_config(d, d_kv=None), ('no d_kv',)),
    'an activation': (MIXTRAL, lambda d: edit_config(d, hidden_act='gelu'), ("hidden_act='gelu'", 'nearest')),
    'scaled positions': (MIXTRAL, lambda d: edit_config(d, rope_parameters=dict(rope_type='llama4')),
                         ('llama4', 'nearest: llama3', 'default, ')),
    'missing tensors': (T5, lambda d: edit_tensors(d, lambda t: t.pop(NORM)),
                        ('1 tensors are missing', NORM)),
    'unknown tensors': (T5, lambda d: edit_tensors(d, lambda t: t.update(more=np.zeros(3))),
                        ('no place', 'more')),
    'shapes': (T5, lambda d: edit_config(d, d_ff=65), ('do not fit', 'wi_0', '[64, 32], not [65, 32]')),
    'vocabulary size': (T5, lambda d: edit_config(d, vocab_size=161),
                        ('shared.weight', '[160, 32], not [161')),
    'heads': (MIXTRAL, lambda d: edit_config(d, num_key_value_heads=3),
              ('num_kv_heads 3', 'possible: 1, 2, 4')),
    'a copy that is none': (T5, lambda d: edit_tensors(d, lambda t: t.update(
        {'encoder.embed_tokens.weight': t['shared.weight'] + 1})), ('encoder.embed_tokens.weight',)),
    'header cut short': (T5, lambda d: cut(d, 100), ('cut short', 'header')),
    'data cut short': (T5, lambda d: cut(d, 100_000), ('cut short', 'ends at byte')),
    'empty file': (T5, lambda d: cut(d, 0), ('cut short',)),
    'no safetensors': (T5, lambda d: (d / 'model.safetensors').write_bytes(b'PK\3\4' * 99),
                       ('no safetensors',)),
    'pickles': (T5, pickles, ('pytorch_model.bin', 'save_pretrained')),
    'no tensors': (T5, lambda d: (d / 'model.safetensors').unlink(), ('no *.safetensors',)),
    'a tensor in two files': (T5, second_file, ('both have',)),
    'an index of more': (T5, index, ('lost.weight', 'not in model.safetensors')),
    'an index of lost files': (T5, lambda d: index(d, file='m-2.safetensors'),
                               ('m-2.safetensors', 'No such')),
    'a vocabulary of another model': (T5, lambda d: (
        shutil.copyfile(PIECES, d / 'tokenizer.model'), edit_config(d, vocab_size=20)),
                                      ('26 ids', 'vocab_size=20')),
}


@pytest.mark.parametrize('name', WRONG)
def test_one_line_and_nothing_left(name, tmp_path, capsys):
  case, spoil, says = WRONG[name]
  source = tmp_path / 'in'
  shutil.copytree(CASES / case, source)
  spoil(source)
  assert_refused(['convert', str(source), str(tmp_path / 'out')], says, capsys)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


def assert_refused(argv, says, capsys):
  capsys.readouterr()
  assert main.main(argv) == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('stmoe: ')]
  assert len(lines) == 1 and all(text in lines[0] for text in says), lines


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """An imported run directory."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  assert main.main(['convert', str(CASES / MIXTRAL), str(path)]) == 0
  return path


EXPORTS = {
    'another family': (['--to', 'switch_transformers'], ('lm', 'nearest: t5')),
    'unknown family': (['--to', 'mixtrall'], ('mixtrall', 'nearest: mixtral')),
    'another router': (['--to', 'deepseek_v3'], ("'deepseek_moe'", 'nearest: deepseek_v3')),
    'another model': (['--to', 'olmoe'], ('not of the family olmoe', 'qk_norm')),
    'no such step': (['--step', '7'], ('no checkpoint of step 7', 'there are: 0')),
    'fields': (['--config.model.windov=3'], ('windov', 'nearest')),
}


@pytest.mark.parametrize('name', EXPORTS)
def test_exports_that_cannot_be(name, run, tmp_path, capsys):
  words, says = EXPORTS[name]
  assert_refused(['convert', str(run), str(tmp_path / 'out'), *words], says, capsys)
  assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path, capsys):
  copy = tmp_path / 'run'
  shutil.copytree(run, copy)
  file = copy / 'checkpoints' / '0' / 'meta' / 'metadata'
  meta = json.loads(file.read_text())
  meta['arrays']['params/decoder/norm/scale'][1] += 1
  file.write_text(json.dumps(meta))
  words = ['convert', str(copy), str(tmp_path / 'out')]
  assert_refused(words, ('checkpoint 0', 'not what was saved'), capsys)
  file.write_text(json.dumps(seal.close(meta, dict(step=0, data=None))))
  assert_refused(['convert', str(copy), str(tmp_path / 'out')],
                 ('params/decoder/norm/scale', 'not what was saved'), capsys)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_targets_in_use_and_flags_of_the_other_way(run, tmp_path, capsys):
  assert_refused(['convert', str(CASES / T5), str(run)], ('there already',), capsys)
  assert_refused(['convert', str(CASES / T5), str(tmp_path / 'out'), '--max-shard', '5GB'],
                 ('--max-shard is for exports',), capsys)
  assert_refused(['convert', str(CASES / T5), str(tmp_path / 'out'), '--dtype', 'F16'],
                 ('--dtype F16', 'nearest: BF16'), capsys)
  assert_refused(['convert', str(run), str(tmp_path / 'out'), '--max-shard', '5'],
                 ('--max-shard', 'such as 900MB or 5GB', 'nearest: 5GB'), capsys)
  assert_refused(['convert', str(tmp_path / 'none'), str(tmp_path / 'out')], ('no folder',), capsys)
