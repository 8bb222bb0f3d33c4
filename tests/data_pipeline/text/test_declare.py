"""Our tasks as seqio Tasks: the same ids both ways; C4 through TensorFlow Datasets, here mocked."""

import dataclasses
import functools
import json
import pathlib
import sys

import pytest

from stmoe import errors
from stmoe.data.text import cache
from stmoe.data.text import stream
from stmoe.data.text import tasks
from stmoe.data.text import vocab

pytestmark = pytest.mark.tf

MODEL = pathlib.Path(__file__).parents[2] / 'data' / 'sentencepiece' / 'seqio_test_26.model'
TEXTS = ['', 'naïve café — 日本語', ' two  blanks\n\ttab', 'a <extra_id_1> c']


@pytest.fixture(scope='module')
def declare():
  from stmoe.data.text import declare as module
  return module


def cached(found, split):
  s = stream.Stream(found, split)
  ends = s.document_ends.tolist()
  return [s.read(a, b).tolist() for a, b in zip([0] + ends, ends, strict=False)]


def ids_of_seqio(task, split):
  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False)
  return [example['targets'].tolist() for example in dataset.as_numpy_iterator()]


@pytest.mark.parametrize('v', [vocab.Bytes(100), vocab.Pieces(MODEL, 10)], ids=['bytes', 'pieces'])
def test_vocabularies_give_the_ids_of_seqio(declare, v):
  theirs = declare.convert(v)
  assert (theirs.vocab_size, theirs.eos_id) == (v.vocab_size, v.eos_id)
  for text, ids in zip(TEXTS, v.encode(TEXTS), strict=True):
    assert theirs.encode(text) == ids.tolist()
    assert v.decode([*ids, 1, 5]) == theirs.decode([*ids.tolist(), 1, 5])


@pytest.mark.parametrize('v', [vocab.Bytes(), vocab.Pieces(MODEL)], ids=['bytes', 'pieces'])
def test_a_cache_holds_what_the_seqio_task_gives(declare, files, cache_dir, v):
  task = tasks.get('text', files)
  found = cache.of(task, v, cache_dir)
  theirs = declare.add(task, v, f'test_{v.vocab_size}')
  for split in tasks.SPLITS:
    assert ids_of_seqio(theirs, split) == cached(found, split)


def test_c4_through_seqio(declare, tmp_path):
  import tensorflow_datasets as tfds
  with tfds.testing.mock_data(num_examples=5):
    task = tasks.get('c4')
    theirs = ids_of_seqio(declare.add(task, vocab.Bytes(), 'test_c4'), 'validation')
    task = dataclasses.replace(task, documents=functools.partial(declare.documents, task))
    found = cache.of(task, vocab.Bytes(), tmp_path)
  assert len(theirs) == 5
  assert cached(found, 'validation') == theirs


# Random text has no pronoun and no key among its choices: wsc, dpr, arc and qasc are tested on rows.
MOCKED = ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'axb', 'axg', 'xsum', 'cnn_dailymail',
          'squad', 'nq_open', 'web_questions', 'trivia_qa', 'winogrande', 'anli_r3')


@pytest.mark.parametrize('name', MOCKED)
def test_forms_take_the_rows_of_tensorflow_datasets(declare, name):
  import tensorflow_datasets as tfds
  task = tasks.get(name)
  with tfds.testing.mock_data(num_examples=3):
    found = list(declare.form_examples(task, 'validation'))
    theirs = declare.add(task, vocab.Bytes(), f'test_{name}')
    dataset = theirs.get_dataset(sequence_length=None, split='validation', shuffle=False,
                                 try_in_mem_cache=False)
    first = next(dataset.as_numpy_iterator())
  assert len(found) >= 3 and theirs.metric_fns
  assert first['targets'].tolist() == [*vocab.Bytes().encode([found[0]['targets']])[0], 1]
  assert theirs.postprocess_fn(b'', example=first, is_target=True) == found[0]
  scores = theirs.metric_fns[0](found, [example['targets'] for example in found])
  assert scores and all(value >= 0 for value in scores.values())


def test_a_form_of_files_is_a_seqio_task_too(declare, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(dict(inputs=f'is {i}', targets='é')) + '\n' for i in range(25)))
  task = tasks.get('jsonl', [str(path)])
  found = cache.of(task, vocab.Bytes(), tmp_path / 'cache')
  theirs = declare.add(task, vocab.Bytes(), 'test_jsonl')
  assert ids_of_seqio(theirs, 'train') == cached(found, 'train')[1::2]


@pytest.mark.slow
def test_c4_in_a_process_of_its_own(declare, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  mocked = ('import sys\nimport tensorflow_datasets as tfds\nfrom stmoe.data.text import declare\n'
            'print("noise on standard output")\n'
            'with tfds.testing.mock_data(num_examples=5):\n  declare.main(*sys.argv[1:])\n')
  monkeypatch.setattr(tasks, 'READER', (sys.executable, '-c', mocked))
  with tfds.testing.mock_data(num_examples=5):
    expected = list(declare.documents(tasks.get('c4'), 'validation'))
  assert list(tasks.get('c4').documents('validation')) == expected != []


@pytest.mark.slow
def test_c4_that_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(errors.UserError, match='task c4: seqio cannot read split .train. from .TFDS_DATA_DIR'):
    cache.of(tasks.get('c4'), vocab.Bytes(), tmp_path / 'c')
  assert list((tmp_path / 'c').iterdir()) == []
