"""Commands on a downloaded folder itself: a tiny OLMoE with its tokenizer, and what was recorded of it."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from stmoe.answer import infer
from stmoe.data.text import cache
from stmoe.data.text import tasks
from stmoe.data.text import tokenizer
from stmoe.data.text import vocab
from stmoe.derive import foreseen

CASE = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'checkpoints' / 'with_text_olmoe'
ENDS = [0, 90, 277]                      # ids: the recorded end, and two that come in recorded texts

pytestmark = pytest.mark.usefixtures('one_device', 'one_size_of_blocks')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The downloaded folder, whose texts have several ends; a cache of its own."""
  home = tmp_path_factory.mktemp('downloaded')
  shutil.copytree(CASE, home / 'Tiny-OLMoE')
  (home / 'Tiny-OLMoE' / 'generation_config.json').write_text(json.dumps(dict(eos_token_id=ENDS)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('STMOE_CACHE_DIR', str(home / 'cache'))
    yield home / 'Tiny-OLMoE'


@pytest.mark.slow
def test_texts_are_written_as_they_are_made_down_to_any_of_the_ends(folder, command, tmp_path):
  recorded = json.loads((CASE / 'expected_text.json').read_text())['greedy']
  used = tokenizer.opened(folder)
  texts = []
  for place in recorded:
    last = np.flatnonzero(np.isin(place['new_ids'], ENDS))
    texts.append(used.decode(place['new_ids'][:last[0]] if len(last) else place['new_ids']))
  assert len({*ENDS} & {i for place in recorded for i in place['new_ids']}) == 3
  (tmp_path / 'prompts.txt').write_text('the cause of\nGood morrow,\n')
  rows = [dict(inputs=place['prompt']) for place in recorded]
  (tmp_path / 'prompts.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  code, out, err = command('infer', folder, tmp_path / 'prompts.jsonl', '--length', '16')
  assert code == 0 and 'is converted once' in err, err
  assert [json.loads(line)['prediction'] for line in out.splitlines()] == texts
  whole = command('infer', folder, tmp_path / 'prompts.txt', '--length', '16', '--batch-size', '1')[1]
  code, out, err = command('infer', folder, tmp_path / 'prompts.txt', '--length', '16', '--stream')
  assert code == 0 and 'was converted before' in err and out == whole


@pytest.mark.parametrize('name, words, says', [
    ('compress', ['prune:keep=0.5', '--workdir', 'half'], 'data.files is empty: task text needs'),
    ('compress', ['merge', '--workdir', 'half', '--config.data.files=nowhere'], "no file 'nowhere'"),
    ('compress', ['prune:keep=0.01', '--workdir', 'half'], 'keep=0.01'),
    ('eval', ['--config.data.fils=a.txt'], 'config.data.fils does not exist'),
    ('eval', [], 'data.files is empty'), ('record', ['--output', 'o.npz'], 'data.files is empty'),
    ('routing', [], 'data.files is empty'), ('rewire', [], 'data.files is empty'),
    ('eval', ['--tasks', 'nowhere'], 'nowhere: No such file'),
    ('eval', ['--task', 'boolq', '--config.data.jsonl=nowhere'], "data.jsonl: no file 'nowhere'"),
    ('eval', ['--replay', 'nowhere.npz'], 'nowhere.npz: No such file'),
    ('finetune', ['finetune/jsonl', '--replay', 'nowhere.npz'], 'nowhere.npz: No such file'),
    ('infer', ['nowhere.txt'], 'nowhere.txt: No such file'),
    ('finetune', ['finetune/jsonl', '--workdir', 'tuned'], 'data.jsonl is empty: task jsonl needs'),
    ('finetune', ['finetune/jsonl', '--config.data.jsonl=a.jsonl,b.jsonl'], "data.jsonl: no file 'a.jsonl'"),
    ('upcycle', ['upcycling/stdlib', '--config.data.task=text', '--workdir', 'up'], 'data.files is empty')])
def test_a_text_that_is_missing_is_asked_for_before_the_model_is_converted(folder, mistake, name, words, says,
                                                                           monkeypatch, tmp_path):
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  assert says in mistake(name, folder, *words) and not (tmp_path / 'cache' / 'imported').exists()


def test_packages_that_a_task_needs_are_named_before_the_model_is_converted(folder, mistake, monkeypatch,
                                                                            tmp_path):
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  monkeypatch.setattr(tasks, 'READ_WITH', ('no_such_package',))
  for name in ('boolq', 'wmt14_en_de'):
    assert 'not installed: no_such_package' in mistake('eval', folder, '--task', name)
  assert not (tmp_path / 'cache' / 'imported').exists()
  (cache.folder() / 'boolq-0123456789abcdef-v1').mkdir(parents=True)  # a cache is read without them
  foreseen.data(folder, ['--config.data.task=boolq'])


def test_what_needs_no_text_is_not_asked_for_one(folder, command, monkeypatch, tmp_path):
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  code, out, err = command('compress', folder, 'prune:keep=0.5,by=magnitude', '--workdir', tmp_path / 'half')
  assert code == 0 and 'parameters' in out, err


@pytest.mark.parametrize('words, says', [
    (['--output', 'o.txt'], '--stream and --output'), (['--jsonl'], '--stream and JSON lines'),
    (['--batch-size', '2'], '--stream and --batch-size'),
    (['--config.decode.name=beam'], 'decode.name=beam knows a text only at its end')])
def test_what_cannot_be_streamed_is_said(folder, mistake, tmp_path, words, says):
  (tmp_path / 'p.txt').write_text('a\n')
  assert says in mistake('infer', folder, tmp_path / 'p.txt', '--stream', *words)


def test_parts_of_a_text_are_told_in_order_and_without_its_end():
  said = []
  told = infer.Told(vocab.Bytes(), (1,), said.append)
  ids = [b + vocab.NUM_SPECIAL for b in 'aé'.encode()] + [1, 100]
  for i in (1, 0, 2, 3, 4):                                          # a host may hear of them in any order
    told(np.int32(i), np.array([ids[i], 50]))
  told.end()
  assert [part for part in said if part] == ['a', 'é']
  told(0, np.array([vocab.NUM_SPECIAL + 0xc3]))                      # the next text, which ends too early
  told.end()
  assert ''.join(said) == 'aé'


@pytest.mark.slow
def test_reports_routing_records_and_evaluations_read_the_folder(folder, command, tmp_path):
  """The commands of the page about what routers do: where tokens go."""
  (tmp_path / 'text.txt').write_text('BAPTISTA:\nGood morrow, neighbour Gremio.\n\n' * 60)
  (tmp_path / 'code.py').write_text('def f(x):\n  return x + 1\n' * 20)
  text, page = tmp_path / 'text.txt', tmp_path / 'page.html'
  code, out, err = command('report', folder, '--text', text, '-o', page)
  assert code == 0 and page.stat().st_size > 10_000 and 'routing a text through Tiny-OLMoE' in err, err
  assert '<div class="routed">' in page.read_text()
  data = [f'--config.data.files={text}', '--config.eval.batch_size=8']
  code, out, err = command('routing', folder, *data, '--batches', '1', '--domain', f'play={text}',
                           '--domain', f'code={tmp_path / "code.py"}', '--json')
  found = json.loads(out)
  assert code == 0 and set(found['domains']) == {'play', 'code'} and len(found['layers']) == 2, err
  code, out, err = command('record', folder, *data, '--batches', '1', '--output', tmp_path / 'routes.npz')
  assert code == 0 and (tmp_path / 'routes.npz').stat().st_size > 1000, err
  code, out, err = command('eval', folder, '--replay', tmp_path / 'routes.npz', '--json')
  assert code == 0 and 0 < json.loads(out)['eval/bits_per_byte'] < 8, err
