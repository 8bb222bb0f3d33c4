"""Tables: columns of .csv and .npz, scales and ids of the training part, to which a run keeps, mistakes."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.answer import score
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.data.sources import table
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states
from tests.train import tiny_run

CSV = '''age,size,job,city,price,liked,part
20,1.5,cook,Bern,10,1,train
40,1.5,"cook, or so",Bern,,0,train
30,1.5,smith,Chur,30,,validation
'''


@pytest.fixture
def config(tmp_path):
  """Returns make(**fields of data) -> a configuration, of the .csv above where no files are named."""
  (tmp_path / 'a.csv').write_text(CSV)

  def make(**fields):
    data = dict(source='table', files=(str(tmp_path / 'a.csv'),), numbers=('age', 'size'),
                labels=('price', 'liked'), split='part', shuffle=False, eval_split='validation',
                cache_dir=str(tmp_path / 'cache'))
    return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=2), eval=dict(batch_size=2),
                                          data=data | fields))
  return make


def first(cfg, opened=None):
  """(first batch of training, first of evaluation)."""
  train = pipeline.train_iterator(cfg, opened=opened)
  batch = next(train)
  train.close()
  return batch, pipeline.eval_batches(cfg, opened=opened)[0]


def test_numbers_are_standardised_by_the_training_part_and_missing_labels_have_no_weight(config):
  cfg = config()
  train, held_out = first(cfg)
  assert train['features'].tolist() == [[-1, 0], [1, 0]]             # (age - 30) / 10; no deviation: / 1
  assert held_out['features'].tolist() == [[0, 0], [0, 0]]           # the second row is none
  assert train['values'].tolist() == [[10, 1], [0, 0]] and train['weights'].tolist() == [[1, 1], [0, 1]]
  assert held_out['values'].tolist() == [[30, 0], [0, 0]]
  assert held_out['weights'].tolist() == [[1, 0], [0, 0]]
  shapes = {name: (s.shape, s.dtype) for name, s in check.batch_shapes(cfg, 2).items()}
  assert shapes == {name: (a.shape, a.dtype) for name, a in train.items()}


def test_a_table_of_a_spreadsheet(config, tmp_path):
  plain, _ = first(config())
  (tmp_path / 'a.csv').write_bytes(CSV.replace('\n', '\r\n').encode('utf-8-sig'))
  found, _ = first(config())
  assert all((found[name] == array).all() for name, array in plain.items())


def test_categories_are_ids_column_after_column_and_what_is_new_is_the_first(config):
  cfg = config(categories=('job', 'city'), given=('city',), num_ids=5)
  train, held_out = first(cfg)
  assert train['ids'].tolist() == [[1, 4], [2, 4]]                   # cook, "cook, or so" | Bern
  assert held_out['ids'][0].tolist() == [0, 3]                       # smith and Chur are not in training
  assert train['given/city'].tolist() == [1, 1] and held_out['given/city'].tolist() == [0, 0]
  assert lookup.source(cfg.data).shapes(3)['given/city'] == ((3,), np.int32)
  with pytest.raises(errors.UserError, match='num_ids=4, but job, city .* have 5 ids; .* data.num_ids=5'):
    pipeline.source(config(categories=('job', 'city'), num_ids=4))


def test_classes_are_numbered_in_their_order(config, tmp_path):
  values = np.arange(40).reshape(20, 2) / 7
  np.savez(tmp_path / 'a.npz', x=values, digit=np.array([10, 9] * 10))
  cfg = config(files=(str(tmp_path / 'a.npz'),), numbers=('x[2]',), labels=('digit',), classes=True, split='')
  train, held_out = first(cfg)
  assert train['labels'].tolist() == [[1], [0]]
  assert held_out['labels'].tolist() == [[0], [0]]                   # every tenth row
  kept = np.delete(values, [9, 19], 0)
  np.testing.assert_allclose(train['features'], (kept[:2] - kept.mean(0)) / kept.std(0), rtol=1e-5)
  facts = pipeline.info(cfg)
  assert facts['vocab_size'] == 2 and facts['num_rows'] == dict(train=18, validation=2)
  assert (lookup.source(cfg.data).targets, lookup.source(config().data).targets) == ('labels', 'values')


def test_a_class_that_is_not_there_has_no_weight(config, tmp_path):
  (tmp_path / 'a.csv').write_text(CSV.replace('cook,Bern', ',Bern'))
  both = (str(tmp_path / 'a.csv'),) * 2
  train, held_out = first(config(labels=('job',), classes=True, files=both, split=''))
  assert train['labels'].tolist() == [[0], [0]] and train['weights'].tolist() == [[0], [1]]
  assert held_out['labels'].tolist() == [[0], [0]] and held_out['weights'].tolist() == [[0], [1]]


def test_a_run_keeps_to_what_it_read_and_reads_other_rows_with_its_scales(config, tmp_path):
  cfg, run = config(categories=('job',), num_ids=9), tmp_path / 'run'
  run.mkdir()
  opened = pipeline.source(cfg, run)
  record.write(run, cfg, opened)
  wanted, digest = first(cfg, opened), opened.info()['vocab'].digest
  kept = json.loads((run / 'data.json').read_text())
  assert kept['facts'] == dict(scales=[[30, 10], [1.5, 1]], categories=[['cook', 'cook, or so']])
  assert len(kept['files'][0]['sha256']) == 64
  (tmp_path / 'a.csv').unlink()
  again = pipeline.source(cfg, run)
  assert again.recorded and 'a.csv is gone' in again.notes[0]
  for one, other in zip(first(cfg, again), wanted):
    assert {name: a.tolist() for name, a in one.items()} == {name: a.tolist() for name, a in other.items()}
  (tmp_path / 'b.csv').write_text(CSV.replace('20,', '90,').replace('cook,Bern', 'baker,Bern'))
  cfg.data.files = (str(tmp_path / 'b.csv'),)
  other = pipeline.source(cfg, run)
  train, _ = first(cfg, other)
  assert not other.recorded and other.info()['vocab'].digest == digest
  assert train['features'][:, 0].tolist() == [6, 1] and train['ids'].tolist() == [[0], [2]]


def run_of(cfg, folder, **changed):
  """The configuration of a run on the data of `cfg`, with a model of numbers."""
  made = tiny_run.config(folder, **{
      'train.batch_size': 2, 'train.steps': 2, 'eval.every': 2, 'eval.batches': 0, 'eval.batch_size': 2,
      'checkpoint.every': 2} | changed).unlock()
  made.data, made.loss = cfg.data, dict(name='values')
  made.model = dict(name='mlp', num_features=2, num_outputs=2, d_model=16, layers=(('dm', 1),))
  return made.lock()


def test_it_fits_a_model_of_numbers_and_classes_do_not(config, tmp_path):
  def forward(cfg):
    with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
      return check.forward(cfg, states.blueprint(cfg, mesh))
  assert len(forward(run_of(config(given=('city',)), tmp_path))) == 1
  with pytest.raises(errors.UserError, match="judges values, .* of data.source='table' are labels"):
    forward(run_of(config(classes=True, labels=('job',)), tmp_path))


def test_what_needs_texts_says_so(config):
  for ask in (pipeline.vocabulary, pipeline.objective, pipeline.judged):
    with pytest.raises(errors.UserError, match="data.source='table'"):
      ask(config())


@pytest.mark.slow
def test_a_run_trains_goes_on_and_is_evaluated_without_the_file(config, tmp_path):
  cfg, one = config(), jax.devices()[:1]
  assert loop.train(run_of(cfg, tmp_path), tmp_path / 'run', devices=one) == 0
  (tmp_path / 'a.csv').unlink()
  assert loop.train(run_of(cfg, tmp_path, **{'train.steps': 4}), tmp_path / 'run', devices=one) == 0
  said = []
  _, values = score.score(rundir.load(tmp_path / 'run'), tmp_path / 'run', said.append, devices=one)
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  wanted = {line['step']: line['eval/loss'] for line in lines if 'eval/loss' in line}
  assert sorted(wanted) == [2, 4] and values['eval/loss'] == pytest.approx(wanted[4], rel=1e-6)
  assert any('a.csv is gone' in line for line in said)


@pytest.mark.parametrize('text, fields, said', [
    (CSV, dict(numbers=('agee',)), "a.csv has no column 'agee'; nearest: age"),
    (CSV, dict(labels=('city',)), "a.csv, line 2: column city holds 'Bern', which is no finite number"),
    (CSV.replace('40', ''), {}, "line 3: column age holds '', which is no"),
    (CSV.replace('40', 'nan'), {}, "line 3: column age holds 'nan', which is no"),
    (CSV.replace('40,', '4,0,'), {}, 'a.csv, line 3: 8 cells, and the header has 7'),
    (CSV.replace('size', 'age'), {}, "the header has 'age' twice"),
    (CSV.replace('validation', 'test'), {}, "split has 'test'"),
    (CSV.replace('validation', 'train'), {}, "the split 'validation' holds no rows"),
    ('', {}, 'a.csv has no header: its first line must name the columns'),
    (CSV.replace(',', ';'), {}, 'a.csv: semicolons are between the cells of its header; a .csv has commas'),
    (CSV.replace(',', '\t'), {}, 'a.csv: tabs are between'),
    (CSV, dict(numbers=('age', 'price')), "data.numbers and data.labels both name 'price': the model would"),
    (CSV, dict(categories=('liked',), num_ids=9), 'nearest: data.categories without liked'),
    (CSV, dict(given=('liked',)), "data.given and data.labels both name 'liked'"),
    (CSV, dict(numbers=('age', 'size', 'age')), "data.numbers names 'age' twice; nearest: data.numbers=age"),
    (CSV, dict(numbers=()), 'a table needs columns to predict from'),
    (CSV, dict(classes=True), 'data.labels=price, liked: with data.classes=True they are one column'),
    (CSV, dict(classes=True, labels=('job',)),
     "a.csv, line 4: column job: the label 'smith' is in no row of training"),
    (CSV.replace(',30,', ',.5,'), dict(classes=True, labels=('price',)),
     "the label '.5' is in no row of training; nearest: data.classes=False (there are: 10)"),
    (CSV.replace('30,,', '1e39,,'), {}, 'line 4: column price holds 1e+39, too large for'),
    (CSV.replace('40,', '1e200,'), {}, 'line 3: column age holds 1e+200, too large to be standardised'),
    (CSV, dict(files=('a', 'b', 'c')), 'from one file, or one for each split; it got 3'),
    (CSV, dict(files=('no.csv',)), "no file 'no.csv'"), (CSV + '"a\n', {}, 'a.csv, line 5')])
def test_mistakes_are_one_line(config, tmp_path, text, fields, said):
  (tmp_path / 'a.csv').write_text(text)
  with pytest.raises(errors.UserError) as error:
    pipeline.source(config(**fields))
  assert said in str(error.value) and '\n' not in str(error.value), str(error.value)


@pytest.mark.parametrize('fields, said', [
    (dict(numbers=('x',)), 'column x has the shape [4, 2]; it must be [4]'),
    (dict(numbers=('x[3]',)), 'column x[3] has the shape [4, 2]; it must be [4, 3]'),
    (dict(numbers=('y',)), "has no array 'y'"),
    (dict(numbers=('name',)), 'column name is <U1; it must hold numbers'),
    (dict(numbers=(), categories=('x[2]',), num_ids=9), 'it must hold names or whole numbers')])
def test_mistakes_in_arrays_are_one_line(config, tmp_path, fields, said):
  np.savez(tmp_path / 'a.npz', x=np.ones((4, 2)), name=np.array(list('abcd')), z=np.arange(4))
  with pytest.raises(errors.UserError) as error:
    pipeline.source(config(files=(str(tmp_path / 'a.npz'),), split='', **dict(dict(labels=('z',)), **fields)))
  assert said in str(error.value), str(error.value)


def test_names_in_bytes_are_utf_8(tmp_path):
  np.savez(tmp_path / 'a.npz', name=np.array(['Zoë'.encode(), b'Bern']), other=np.array([b'\xff', b'a']))
  columns = table.columns(str(tmp_path / 'a.npz'))
  assert columns.names('name').tolist() == [['Zoë'], ['Bern']]
  with pytest.raises(errors.UserError, match='column other holds .*xff.*, which is not UTF-8'):
    columns.names('other')
