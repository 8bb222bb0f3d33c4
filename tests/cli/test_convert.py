"""stmoe convert, and the other commands on what it made."""

import pathlib
import re
import shutil

import pytest

from stmoe import errors
from stmoe.answer import infer
from stmoe.answer import interactive
from stmoe.cli import main
from stmoe.data import batches as pipeline
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir

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


def test_texts_start_with_the_model_s_first_token(run, tmp_path):
  (tmp_path / 'text.txt').write_text('the day is a day\n' * 400)
  cfg = rundir.load(run)
  cfg.data.update(files=(str(tmp_path / 'text.txt'),), cache_dir=str(tmp_path / 'cache'))
  assert cfg.model.start_id == 1 and cfg.model.end_ids == (2,)       # bos and eos of its config.json
  batch = pipeline.eval_batches(cfg)[0]
  assert (batch['decoder_input_tokens'][:, 0] == 1)[batch['decoder_segment_ids'][:, 0] > 0].all()
  used = pipeline.vocabulary(cfg)
  assert infer.tokens(cfg, used, 'here', 'the')[0] == 1
  shown = interactive.batch(cfg, used, 'the day')
  assert shown['decoder_input_tokens'][0, 0] == 1


WITHOUT = 'imported without a vocabulary (tokenizer.json or a SentencePiece model)'


def test_without_a_vocabulary_texts_are_refused_and_ids_are_not(tmp_path, capsys):
  run, text = str(tmp_path / 'run'), tmp_path / 'text.txt'
  text.write_text('the day is a day\n' * 400)
  (tmp_path / 'pairs.jsonl').write_text('{"inputs": "the", "targets": "day"}\n' * 99)
  assert main.main(['convert', str(DATA / 'checkpoints' / 'mixtral_window_pad'), run]) == 0
  sizes = ['--config.eval.batch_size=8', '--config.train.batch_size=8']
  for argv in (['eval', run, f'--config.data.files={text}', *sizes], ['infer', run, str(text)],
               ['finetune', run, 'finetune/jsonl', f'--config.data.jsonl={tmp_path / "pairs.jsonl"}',
                '--workdir', f'{run}-2', *sizes],
               ['report', run, '--text', str(text), '-o', str(tmp_path / 'page.html')]):
    capsys.readouterr()
    assert main.main(argv) == 2, argv
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('stmoe: '))
    assert WITHOUT in line
  assert main.main(['report', run, '-o', str(tmp_path / 'page.html')]) == 0
  model, cfg, vocabulary = interactive.opened(run)
  assert vocabulary is None and cfg.data.vocab == '' and model.start_id == 1
  with pytest.raises(errors.UserError, match=re.escape(WITHOUT)):
    interactive.batch(cfg, vocabulary, 'the')


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
