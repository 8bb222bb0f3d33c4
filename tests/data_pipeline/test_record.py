"""data.json: a run goes on with what it read, wherever it lies and whatever became of the files."""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.data import batches as pipeline
from stmoe.data import record


def config(folder, **fields):
  data = dict(task='text', files=(str(folder / 'a.txt'),), vocab='train:290', extra_ids=0, objective='lm',
              length=32, join=True, pack=True, mixture=(), shuffle=True, eval_split='validation',
              cache_dir=str(folder / 'cache')) | fields
  return ml_collections.ConfigDict(
      dict(seed=0, train=dict(batch_size=4), eval=dict(batch_size=4, batches=0), data=data))


@pytest.fixture
def begun(tmp_path):
  """(folder with a text, configuration, run directory with its data.json, the batches that it means)."""
  (tmp_path / 'a.txt').write_text('the router sends a token to an expert, number 7\n' * 200)
  cfg, run = config(tmp_path), tmp_path / 'run'
  return tmp_path, cfg, run, begin(cfg, run)


def begin(cfg, run):
  run.mkdir()
  opened = pipeline.source(cfg, run)
  record.write(run, cfg, opened)
  return batches(cfg, opened)


def batches(cfg, opened):
  """All batches of evaluation, the first of training, and where training is."""
  train = pipeline.train_iterator(cfg, opened=opened)
  first, state = next(train), train.get_state()
  train.close()
  return [*pipeline.eval_batches(cfg, opened=opened), first], state['data']


def same(found, wanted):
  for one, other in zip(found[0], wanted[0], strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  assert found[1] == wanted[1]


def append(file):
  with open(file, 'a') as opened:
    opened.write('other words of another text\n' * 300)


@pytest.mark.parametrize('change, said', [
    (append, 'has changed since'), (pathlib.Path.unlink, 'is gone since'), (lambda file: file.touch(), None)])
def test_what_becomes_of_the_files_changes_nothing(begun, change, said):
  folder, cfg, run, wanted = begun
  change(folder / 'a.txt')
  opened = pipeline.source(cfg, run)
  same(batches(cfg, opened), wanted)
  assert [said in note and 'a.txt' in note for note in opened.notes] == [True] * (said is not None)


def test_a_moved_run_has_its_vocabulary_with_it(begun):
  folder, cfg, run, _ = begun
  digest = pipeline.vocabulary(cfg).digest
  (folder / 'a.txt').unlink()
  shutil.rmtree(folder / 'cache')
  run.rename(folder / 'elsewhere')
  assert pipeline.vocabulary(cfg, found=record.read(folder / 'elsewhere')).digest == digest
  with pytest.raises(errors.UserError, match="no file .*a.txt"):
    pipeline.vocabulary(cfg)


def test_a_vocabulary_that_is_damaged_is_never_replaced_by_another(begun):
  folder, cfg, run, wanted = begun
  (run / 'data' / 'pieces.model').write_bytes(b'')
  same(batches(cfg, pipeline.source(cfg, run)), wanted)              # trained again on the same text
  append(folder / 'a.txt')
  with pytest.raises(errors.UserError, match='pieces.model is gone or damaged, and .*train:290. makes'):
    pipeline.source(cfg, run)


def test_other_files_are_other_data_in_the_run_s_vocabulary(begun):
  folder, cfg, run, wanted = begun
  (folder / 'b.txt').write_text('something else, 8 or 9 experts\n' * 200)
  cfg.data.files = (str(folder / 'b.txt'),)
  opened = pipeline.source(cfg, run)
  assert not opened.recorded and opened.notes == []
  assert opened.vocabulary.digest == pipeline.source(config(folder), run).vocabulary.digest
  assert not np.array_equal(batches(cfg, opened)[0][0]['decoder_target_tokens'],
                            wanted[0][0]['decoder_target_tokens'])


def test_a_cache_that_is_gone_is_made_again_of_the_same_text_only(begun):
  folder, cfg, run, wanted = begun
  shutil.rmtree(folder / 'cache')
  same(batches(cfg, pipeline.source(cfg, run)), wanted)
  shutil.rmtree(folder / 'cache')
  append(folder / 'a.txt')
  with pytest.raises(errors.UserError, match='run: the cache of its data is lost .*is gone.* cannot be made '
                                             'again: .*a.txt has changed') as caught:
    pipeline.source(cfg, run)
  assert '\n' not in str(caught.value)
  (folder / 'a.txt').unlink()
  with pytest.raises(errors.UserError, match="cannot be made again: data.files: no file '.*a.txt'"):
    pipeline.source(cfg, run)


@pytest.mark.parametrize('damage', [
    lambda text: text[:-40], lambda text: '', lambda text: text.replace('"extra_ids": 0', '"extra_ids": 1')])
def test_a_damaged_record_counts_as_none_and_says_so(begun, damage):
  folder, cfg, run, wanted = begun
  text = (run / 'data.json').read_text()
  (run / 'data.json').write_text(damage(text))
  opened = pipeline.source(cfg, run)
  same(batches(cfg, opened), wanted)
  [note] = opened.notes
  assert 'data.json' in note and 'read from their files again' in note
  record.write(run, cfg, opened)
  assert pipeline.source(cfg, run).recorded


def test_a_run_of_before_reads_its_files(begun):
  folder, cfg, run, wanted = begun
  (run / 'data.json').unlink()
  same(batches(cfg, pipeline.source(cfg, run)), wanted)


def test_a_vocabulary_beside_a_run_that_was_moved(tmp_path):
  model = pathlib.Path(__file__).parents[1] / 'data' / 'sentencepiece' / 'seqio_test_26.model'
  (tmp_path / 'run').mkdir()
  shutil.copyfile(model, tmp_path / 'run' / 'vocabulary.model')
  cfg = config(tmp_path, vocab='/nowhere/run/vocabulary.model')
  assert pipeline.vocabulary(cfg, found=record.read(tmp_path / 'run')).vocab_size == 26


def test_pairs_keep_their_metrics(tmp_path):
  (tmp_path / 'a.jsonl').write_text(''.join(
      json.dumps(dict(inputs=f'add {i} and 1', targets=str(i + 1))) + '\n' for i in range(60)))
  cfg = config(tmp_path, task='jsonl', files=(), jsonl=(str(tmp_path / 'a.jsonl'),), vocab='bytes',
               join=False, objective='prompted')
  begin(cfg, tmp_path / 'run')
  (tmp_path / 'a.jsonl').unlink()
  opened = pipeline.source(cfg, tmp_path / 'run')
  [judged] = opened.judged()[0].values()
  assert judged.metrics == ('accuracy',) and judged.examples[0]['inputs'].startswith('add ')
  assert 'a.jsonl is gone' in opened.notes[0]


def test_images(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(tmp_path / 'a.npz', image=rng.integers(0, 256, (20, 8, 8), np.uint8), label=np.arange(20) % 10)
  cfg = experiment.load('vmoe/digits:smoke', [])[0].unlock()
  cfg.data.update(task='npz', files=(str(tmp_path / 'a.npz'),), cache_dir=str(tmp_path / 'cache'))
  wanted = begin(cfg, tmp_path / 'run')
  np.savez(tmp_path / 'a.npz', image=np.zeros((20, 8, 8), np.uint8), label=np.arange(20) % 10)
  opened = pipeline.source(cfg, tmp_path / 'run')
  same(batches(cfg, opened), wanted)
  assert 'a.npz has changed' in opened.notes[0]
  for file in (tmp_path / 'cache').glob('images-npz-*/train.images.npy'):
    file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(errors.UserError, match='of its data is lost .*train.images.npy.*a.npz has changed'):
    pipeline.source(cfg, tmp_path / 'run')


def test_questions(tmp_path):
  def write(answer):
    context = f'The river Aare is {answer} long and flows through Bern.'
    qa = dict(id='1', question='How long is it?', answers=[dict(text=answer, answer_start=18)])
    for name in 'ab':
      (tmp_path / f'{name}.json').write_text(json.dumps(dict(data=[dict(paragraphs=[dict(
          context=context, qas=[qa])])])))
  write('291 km')
  cfg = experiment.load('robust_qa/moe_head:smoke', [])[0].unlock()
  cfg.data.update(task='squad', files=(str(tmp_path / 'a.json'), str(tmp_path / 'b.json')), inputs_length=64,
                  stride=16, question_length=32, cache_dir=str(tmp_path / 'cache'))
  wanted = begin(cfg, tmp_path / 'run')
  write('99 miles')
  opened = pipeline.source(cfg, tmp_path / 'run')
  same(batches(cfg, opened), wanted)
  assert opened.judged()[0]['b'].examples[0]['references'] == ['291 km']
  assert [note.split()[2] for note in opened.notes] == ['has', 'has']
  shutil.rmtree(tmp_path / 'cache')
  with pytest.raises(errors.UserError, match='cache of its data is lost .*is gone.*b.json has changed'):
    pipeline.source(cfg, tmp_path / 'run')
