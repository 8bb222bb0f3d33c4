"""stmoe convert, and the other commands on what it made."""

import pathlib
import shutil

import pytest

from stmoe.cli import main
from stmoe.interop import files

DATA = pathlib.Path(__file__).resolve().parent.parent / 'data'
PIECES = DATA / 'sentencepiece' / 'seqio_test_26.model'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The run directory of an imported language model with a vocabulary."""
  folder = tmp_path_factory.mktemp('convert')
  shutil.copytree(DATA / 'checkpoints' / 'mixtral_window_pad', folder / 'in')
  shutil.copyfile(PIECES, folder / 'in' / 'tokenizer.model')
  assert main.main(['convert', str(folder / 'in'), str(folder / 'run')]) == 0
  return folder / 'run'


def test_an_imported_run_opens_like_any_other(run, tmp_path, capsys):
  assert (run / 'vocabulary.model').read_bytes() == PIECES.read_bytes()
  (tmp_path / 'text.txt').write_text('the day is a day\n' * 400)
  (tmp_path / 'prompts.txt').write_text('the day\na\n')
  data = [f'--config.data.files={tmp_path / "text.txt"}', f'--config.data.cache_dir={tmp_path / "cache"}']
  capsys.readouterr()
  assert main.main(['eval', str(run), *data, '--config.eval.batches=1', '--config.eval.batch_size=8']) == 0
  loss = [line for line in capsys.readouterr().out.splitlines() if line.startswith('eval/loss')]
  assert 3.0 < float(loss[0].split()[1]) < 8.0                       # random weights, 160 ids: log 160 = 5.1
  assert main.main(['infer', str(run), str(tmp_path / 'prompts.txt'), '--length', '3']) == 0
  assert len(capsys.readouterr().out.splitlines()) == 2
  assert main.main(['report', str(run), '-o', str(tmp_path / 'page.html')]) == 0
  assert (tmp_path / 'page.html').stat().st_size > 1000


def test_an_export_says_what_it_wrote_and_brings_the_tokenizer(run, tmp_path, capsys):
  capsys.readouterr()
  assert main.main(['convert', str(run), str(tmp_path / 'out'), '--dtype', 'BF16']) == 0
  made = files.tensors(tmp_path / 'out')
  said = f'{len(made)} tensors of the family mixtral in 1 file(s), from step 0'
  assert said in capsys.readouterr().out
  assert (tmp_path / 'out' / 'tokenizer.model').read_bytes() == PIECES.read_bytes()
  assert {t.dtype for t in made.values()} == {'BF16'}


def test_another_vocabulary_is_refused(run, tmp_path, capsys):
  (tmp_path / 'text.txt').write_text('the day\n' * 400)
  words = [f'--config.data.files={tmp_path / "text.txt"}', f'--config.data.cache_dir={tmp_path / "cache"}',
           '--config.data.extra_ids=3']
  assert main.main(['eval', str(run), *words, '--config.eval.batches=1', '--config.eval.batch_size=8']) == 2
  assert 'another vocabulary' in capsys.readouterr().err
