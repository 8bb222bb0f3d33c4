"""stmoe convert, and the other commands on what it made."""

import json
import pathlib
import re
import shutil

import pytest

from stmoe import errors
from stmoe.answer import infer
from stmoe.answer import interactive
from stmoe.cli import main
from stmoe.data import batches as pipeline
from stmoe.data.text import tokenizer
from stmoe.derive import vocabularies
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


@pytest.fixture(scope='module')
def olmoe(tmp_path_factory):
  """A downloaded folder whose two files about first tokens disagree."""
  folder = tmp_path_factory.mktemp('olmoe') / 'in'
  shutil.copytree(DATA / 'checkpoints' / 'with_text_olmoe', folder)
  config = folder / 'tokenizer_config.json'
  config.write_text(json.dumps(json.loads(config.read_text()) | dict(
      add_bos_token=True, bos_token='<|padding|>', chat_template='{% for m in messages %}{{ m.content }}\n'
      '{% if m.role == "system" %}{{ raise_exception("no system") }}{% endif %}{% endfor %}')))
  return folder


@pytest.mark.parametrize('bos, start, prompts', [(None, 0, False), (True, 1, True), (False, 0, False)])
def test_first_tokens_follow_the_post_processor_unless_bos_decides(olmoe, bos, start, prompts):
  lines, used = [], tokenizer.opened(olmoe)
  found = vocabularies.starts(used, dict(name='lm', start_id=7, end_ids=(9,)), bos, lines.append)
  assert found == dict(start_id=start, start_prompts=prompts)
  said = 'add_bos_token=True, and the post-processor of tokenizer.json adds none'
  assert bool(lines) == (bos is None) and all(said in line and '--bos yes' in line for line in lines)
  used.named = {}
  assert vocabularies.starts(used, dict(name='lm', end_ids=(9,)), False, print)['start_id'] == 9
  with pytest.raises(errors.UserError, match='--bos yes: .* has no first token'):
    vocabularies.starts(used, dict(name='lm'), True, print)


def test_bos_is_for_imports_of_decoders_with_a_tokenizer(run, tmp_path, capsys):
  for source in (run, DATA / 'checkpoints' / 'mixtral_window_pad', DATA / 'checkpoints' / 'switch_drop_pad'):
    assert main.main(['convert', str(source), str(tmp_path / 'out'), '--bos', 'yes']) == 2
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('stmoe: '))
    assert '--bos is for' in line


@pytest.mark.slow
def test_conversations_in_a_run_that_was_moved(olmoe, tmp_path, capsys):
  assert main.main(['convert', str(olmoe), str(tmp_path / 'run'), '--bos', 'yes']) == 0
  cfg = rundir.load(tmp_path / 'run')
  assert (cfg.model.start_id, cfg.model.start_prompts, cfg.model.end_ids) == (1, True, (0,))
  assert infer.tokens(cfg, pipeline.vocabulary(cfg), '', 'a') == [1, 66]
  (tmp_path / 'run').rename(tmp_path / 'moved')
  talk = lambda role: json.dumps(dict(messages=[dict(role=role, content='Speak!')]))
  (tmp_path / 'good.jsonl').write_text(f'{talk("user")}\n' + '{"inputs": "Speak!"}\n')
  (tmp_path / 'plain.txt').write_text('Speak!\n')
  capsys.readouterr()
  moved = str(tmp_path / 'moved')
  ask = lambda name: main.main(['infer', moved, str(tmp_path / name), '--chat', '--length', '6'])
  assert ask('good.jsonl') == 0
  first, second = (json.loads(line)['prediction'] for line in capsys.readouterr().out.splitlines())
  assert ask('plain.txt') == 0
  third = capsys.readouterr().out.removesuffix('\n').replace('\\n', '\n')
  assert first == second == third and first
  for line, wrong in (('{"messages": []}', 'no object with "messages"'), (talk('system'), 'says: no system'),
                      ('{"text": 1}', 'no object with a text "inputs" or with "messages"')):
    (tmp_path / 'bad.jsonl').write_text(line + '\n')
    assert ask('bad.jsonl') == 2
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('stmoe: '))
    assert 'bad.jsonl:1' in line and wrong in line


def test_another_vocabulary_is_refused(run, tmp_path, capsys):
  (tmp_path / 'text.txt').write_text('the day\n' * 400)
  words = [f'--config.data.files={tmp_path / "text.txt"}', f'--config.data.cache_dir={tmp_path / "cache"}',
           '--config.data.extra_ids=3']
  assert main.main(['eval', str(run), *words, '--config.eval.batches=1', '--config.eval.batch_size=8']) == 2
  assert 'another vocabulary' in capsys.readouterr().err
