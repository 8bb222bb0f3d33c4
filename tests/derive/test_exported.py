"""What stands beside the tensors of an export: files as they were imported, a card with the run's numbers."""

import json
import pathlib
import re
import shutil
import sys
import tarfile

import jax
import pytest

from stmoe.analysis import flops
from stmoe.derive import convert
from stmoe.derive import compress
from stmoe.derive import finetune
from stmoe.derive.conversion import importing
from stmoe.derive import start
from stmoe.interop import tensors
from stmoe.runs import directory as rundir
from stmoe.runs import lineage

DATA = pathlib.Path(__file__).resolve().parents[1] / 'data'
PIECES = DATA / 'sentencepiece' / 'seqio_test_26.model'


@pytest.fixture
def trained(tmp_path):
  """A run of Mixtral's form that was trained for two steps, and evaluated."""
  with tarfile.open(DATA / 'old_export.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path / 'old_export' / 'run'


def rows(card):
  """Dict first cell -> last cell of the tables of a card."""
  return {cells[0]: cells[-1] for line in card.splitlines() if line.startswith('| ')
          if (cells := [cell.strip() for cell in line.strip('|').split('|')])}


def test_all_files_of_an_import_come_back_as_they_were(tmp_path):
  source = tmp_path / 'in'
  shutil.copytree(DATA / 'checkpoints' / 'mixtral_window_pad', source)
  shutil.copyfile(PIECES, source / 'tokenizer.model')
  read = {'config.json', 'tokenizer.json', 'spiece.model', 'tokenizer.model'}
  for name in {*importing.BESIDE} - read:
    (source / name).write_bytes(b'{"eos_token_id": [2, 7]}\r\n')
  (source / 'modeling_tiny.py').write_text('raise SystemExit')       # code does not come along
  convert.read(source, tmp_path / 'run', say=print)
  source.rename(tmp_path / 'gone')
  (tmp_path / 'run').rename(tmp_path / 'moved')
  convert.write(tmp_path / 'moved', tmp_path / 'out')
  there = {path.name for path in (tmp_path / 'out').iterdir()}
  known = {*importing.BESIDE, 'model.safetensors'} - {'tokenizer.json', 'spiece.model'}
  assert there == known | {'README.md'}
  for name in known:
    assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'gone' / name).read_bytes(), name


def tuned(start, path):
  """A run that starts from run `start`, a decoder of texts, before its first step."""
  pairs = path.parent / 'pairs.jsonl'
  rows = [dict(inputs=f'{n} plus {n}', targets=str(2 * n)) for n in range(16)]
  pairs.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  few = dict(inputs_length=24, targets_length=8, jsonl=pairs, cache_dir=path.parent / 'cache')
  overrides = [f'--config.{text}' for text in (
      *(f'data.{name}={value}' for name, value in few.items()), 'train.steps=1', 'train.batch_size=8',
      'eval.batch_size=8', 'eval.methods=rank')]
  cfg, name = finetune.prepare('finetune/jsonl', overrides, start)
  assert finetune.finetune(start, cfg, path, name, devices=jax.devices()[:1], say=lambda line: None) == 0
  return path


def test_what_is_fine_tuned_keeps_what_its_import_said(tmp_path, monkeypatch):
  """Ids of padding and of first tokens, of which ours says nothing, and all other fields of these files."""
  monkeypatch.setattr(finetune.loop, 'train', lambda *args: 0)
  source, said, quiet = tmp_path / 'in', {}, dict(say=lambda line: None, devices=jax.devices()[:1])
  shutil.copytree(DATA / 'checkpoints' / 'with_text_olmoe', source)
  for name in ('config.json', 'generation_config.json'):
    said[name] = json.loads((source / name).read_text())
    said[name] |= dict(pad_token_id=1, bos_token_id=None, use_cache=True)
    (source / name).write_text(json.dumps(said[name]))
  convert.read(source, tmp_path / 'run', say=print)
  run = tuned(tmp_path / 'run', tmp_path / 'tuned')
  assert convert.write(run, tmp_path / 'out')[:2] == (0, 'olmoe')
  for name, values in said.items():
    assert json.loads((tmp_path / 'out' / name).read_text()) == values, name
  for name in {*importing.BESIDE} & {file.name for file in source.iterdir()}:
    assert (tmp_path / 'out' / name).is_file(), name
  kinds = {tensor.dtype for tensor in tensors.tensors(tmp_path / 'out').values()}
  assert kinds == {'F32'}

  convert.write(run, tmp_path / 'two', dtype='BF16')                 # config.json says what the tensors are
  wanted = said['config.json'] | dict(dtype='bfloat16')
  assert json.loads((tmp_path / 'two' / 'config.json').read_text()) == wanted
  convert.write(run, tmp_path / 'ends', ['model.end_ids=(3,)'])
  for name, values in said.items():
    assert json.loads((tmp_path / 'ends' / name).read_text()) == values | dict(eos_token_id=3), name
  compress.compress(run, 'prune:keep=1.0', tmp_path / 'whole', **quiet)
  assert convert.write(tmp_path / 'whole', tmp_path / 'smaller')[:2] == (0, 'olmoe')
  assert json.loads((tmp_path / 'smaller' / 'config.json').read_text()) == said['config.json']


def test_the_card_of_a_trained_run_has_its_numbers(trained, tmp_path):
  convert.write(trained, tmp_path / 'out', to='mixtral')
  card = (tmp_path / 'out' / 'README.md').read_text()
  line = json.loads((trained / 'metrics.jsonl').read_text().splitlines()[-1])
  found = rows(card)
  assert found['loss'] == f'{line["eval/loss"]:.6g}' and found['training steps'] == '2'
  assert found['trained tokens'] == f'{int(line["tokens"]):,}' and '## Ancestry' not in card
  stored = tensors.tensors(tmp_path / 'out')
  number = sum(t.size // 4 for t in stored.values())
  assert found['parameters'] == f'{number:,}'
  size = flops.parameters(rundir.load(trained))
  assert found['active parameters of a token'] == f'{size["active"]:,}' and size['active'] < number
  assert card.startswith('---\nlibrary_name: transformers\n') and '- mixtral\n---' in card
  generation = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert generation == {key: config[key] for key in ('pad_token_id', 'bos_token_id', 'eos_token_id')}


def test_the_card_says_only_what_was_measured_of_this_checkpoint(trained, tmp_path):
  (trained / 'results_boolq.json').write_text('{"step": 2, "scores": {"boolq/accuracy@rank": 61.5}}')
  (trained / 'results.json').write_text('{"step": 1, "scores": {"other/accuracy@rank": 99.0}}')
  swept = dict(field='blocks.m.router.eval_k', value=4, step=2) | {'eval/loss': 1.25}
  (trained / 'evals.jsonl').write_text(f'{json.dumps(swept)}\n{json.dumps(swept | dict(step=1, value=3))}\n')
  convert.write(trained, tmp_path / 'out', to='mixtral')
  found = rows((tmp_path / 'out' / 'README.md').read_text())
  assert found['boolq/accuracy@rank'] == '61.50' and 'other/accuracy@rank' not in found
  assert found['blocks.m.router.eval_k=4'] == '1.25' and 'blocks.m.router.eval_k=3' not in found


def test_a_vocabulary_of_a_run_comes_along(trained, tmp_path):
  convert.write(trained, tmp_path / 'out', [f'data.vocab={PIECES}'], to='mixtral')
  assert (tmp_path / 'out' / 'tokenizer.model').read_bytes() == PIECES.read_bytes()


def test_a_card_has_the_commands_of_all_ancestors(trained, tmp_path, monkeypatch):
  (trained / 'env.json').write_text('{"command": ["/usr/bin/stmoe", "train", "lm/a b"]}')
  monkeypatch.setattr(sys, 'argv', ['/usr/bin/stmoe', 'compress', 'run', 'prune', '--workdir', 'half'])
  made = start.origin('prune', dict(keep=0.5), [start.parent(trained, 2)], {})
  (trained / 'ancestry.json').write_text(json.dumps(made))
  (trained / 'env.json').write_text('{"command": ["ipykernel_launcher.py", "-f", "x"]}')   # of no command
  monkeypatch.setattr(sys, 'argv', ['stmoe', 'convert', 'half', 'out'])
  convert.write(trained, tmp_path / 'out', to='mixtral')
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert re.search(r"```sh\n(.*?)\n```", card, re.S).group(1).splitlines() == [
      "stmoe train 'lm/a b'", 'stmoe compress run prune --workdir half', 'stmoe convert half out']
  assert 'made by prune (keep=0.5) of\n  run, step 2' in card and str(trained.parent) not in card


def test_a_command_is_of_stmoe():
  assert lineage.command(['/x/stmoe/cli/main.py', 'train', 'a b']) == "stmoe train 'a b'"
  assert lineage.command(['pytest', 'train']) is None and lineage.command([]) is None
