"""What is said of a downloaded folder, by its headers alone; what is not supported, in a line."""

import json
import pathlib
import shutil

import pytest

from stmoe import errors
from stmoe.cli import main
from stmoe.derive import shown
from stmoe.interop import tensors as files

CASES = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'checkpoints'
CASE = CASES / 'mixtral_window_pad'


@pytest.fixture
def copy(tmp_path):
  """A function (fields of config.json) -> a copy of CASE with them, whose tensors nobody may read."""
  def make(**fields):
    folder = shutil.copytree(CASE, tmp_path / 'folder')
    hf = json.loads((folder / 'config.json').read_text()) | fields
    (folder / 'config.json').write_text(json.dumps(hf))
    return folder
  return make


def test_a_folder_is_described_by_its_headers(copy, monkeypatch, capsys):
  monkeypatch.setattr(files.Tensor, 'read', lambda *_: pytest.fail('a tensor was read'))
  monkeypatch.setattr(shown, 'memory', lambda: (200_000, 'this machine'))
  folder = copy()
  (folder / 'tokenizer.json').write_text('{}')
  assert main.main(['show', str(folder)]) == 0
  out = capsys.readouterr().out.splitlines()
  # Embedding and head 2 x 160 x 32; a layer has norms 64, attention 3072, router 192, 6 x 3 x 32 x 32.
  assert out[0].split(maxsplit=1) == ['family', 'mixtral (MixtralForCausalLM)']
  assert out[1].split(maxsplit=1) == ['tensors', '41 in 1 file(s): F32 214.66 kB']
  assert out[2].split(maxsplit=1) == ['beside', 'tokenizer.json']
  assert out[3].split(maxsplit=1) == ['parameters', '53,664, of which a token uses 35,232']
  assert out[4].split(maxsplit=1) == ['sizes', '2 layers, width 32, vocabulary 160']
  assert out[5].endswith('214.66 kB as float32; this machine has 200.00 kB free: does not fit')


@pytest.mark.parametrize('fields, words', [
    (dict(model_type='jamba'), ('jamba', 'mixtral')),
    (dict(quantization_config=dict(quant_method='awq')), ("quantization_config.quant_method='awq'",)),
    (dict(hidden_act='gelu_fast'), ("hidden_act='gelu_fast'",)),
    (dict(num_hidden_layers=3), ('tensors are missing',)),
])
def test_what_is_not_supported_is_the_last_line(copy, fields, words):
  *_, last = shown.lines(copy(**fields))
  assert last.startswith('not supported: ') and all(word in last for word in words) and '\n' not in last


def test_the_configuration_of_a_folder(copy, capsys):
  assert main.main(['show', str(CASE), '--json']) == 0
  assert json.loads(capsys.readouterr().out)['model']['vocab_size'] == 160
  with pytest.raises(errors.UserError, match='jamba'):
    shown.opened(copy(model_type='jamba'))


def test_free_memory_is_some():
  free, where = shown.memory()
  assert free > 0 and where
