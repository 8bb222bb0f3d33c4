"""Every file of a run directory that is not what it should be is one line with its name, whoever reads it."""

import io
import json

import numpy as np
import pytest

from stmoe import errors
from stmoe.runs import read as runs
from stmoe.runs import records
from tests.analysis import synthetic

RUBBISH = {'empty': b'', 'list': b'[]\n', 'null': b'null\n', 'text': b'"a"\n', 'deep': b'[' * 100_000 + b'\n',
           'bytes': b'\xff\xfe{}\n', 'surrogate': b'{"a": "\\ud800"}\n', 'folder': None, 'link': ...}


def npz(**arrays):
  content = io.BytesIO()
  np.savez(content, **arrays)
  return content.getvalue()


def put(file, content):
  """Puts bytes, a folder (None) or a link that leads nowhere (...) in the place of `file`."""
  file.unlink()
  if content is None:
    file.mkdir()
  elif content is ...:
    file.symlink_to('nowhere')
  else:
    file.write_bytes(content)


def parent(made, **changed):
  """What a lineage says of one parent."""
  return dict(run='/runs/a', step=4, config='c1', checkpoint=None, made=made) | changed


def made(*parents):
  return dict(method='finetune', options=dict(load='all'), parents=list(parents))


def lineage(*entries):
  return json.dumps(dict(facts={}, lineage=entries))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = synthetic.write_run(tmp_path_factory.mktemp('whole') / 'run', steps=40)
  (folder / 'best.json').write_text('{"step": 20, "name": "eval/loss", "value": 1.5}')
  (folder / 'imported.json').write_text('{"family": "t5", "dtype": "F32", "dtypes": {}, "copies": []}')
  (folder / 'ancestry.json').write_text(lineage(made(parent(1)), made(parent(None))))
  (folder / 'evals.jsonl').write_text('{"step": 40, "field": "eval.draws", "value": 2, "eval/loss": 1.5}\n')
  return folder


@pytest.fixture
def run(whole, tmp_path):
  """A copy of the run to be damaged, and a sound one beside it."""
  for name in ('run', 'sound'):
    (tmp_path / name / 'router_stats').mkdir(parents=True)
    for file in (path for path in whole.rglob('*') if path.is_file()):
      (tmp_path / name / file.relative_to(whole)).hardlink_to(file)
  return tmp_path / 'run'


READERS = {'config.json': records.config, 'env.json': records.environment, 'metrics.jsonl': records.metrics,
           'evals.jsonl': records.evaluations, 'DONE': records.done, 'best.json': records.best,
           'imported.json': records.imported, 'ancestry.json': records.ancestry,
           'router_stats/40.npz': lambda path: list(records.stats(path))}


def refused(run, name):
  """The line with which the reader of `name` refuses it; the reader of whole runs says the same."""
  with pytest.raises(errors.Damaged, match=name) as error:
    READERS[name](run)
  if name not in ('best.json', 'imported.json', 'ancestry.json'):    # of which pages say nothing
    with pytest.raises(errors.Damaged, match=name):
      runs.read(run)
  assert '\n' not in str(error.value)
  return error.value.reason


def test_what_is_no_run_directory_is_a_line_that_says_what_may_be_meant(tmp_path):
  (tmp_path / 'small').mkdir()
  (tmp_path / 'small' / 'config.json').write_text('{}')
  for path, says in ((tmp_path / 'smal', '; nearest: small'), (tmp_path, '; it has the runs small inside'),
                     ('allenai/OLMoE-1B-7B', 'hf download allenai/OLMoE-1B-7B --local-dir OLMoE-1B-7B')):
    with pytest.raises(errors.UserError, match=f'is not a run directory: it has no config.json.*{says}$'):
      records.config(path)


def test_a_sound_run_is_read(run):
  for read in READERS.values():
    assert read(run)
  for name in ('env.json', 'metrics.jsonl', 'evals.jsonl', 'DONE', 'best.json', 'imported.json',
               'ancestry.json'):
    (run / name).unlink()
  assert records.ancestry(run) == {} and runs.read(run).lines == [] and records.done(run) is None
  assert records.best(run) == dict(step=-1, name='', value=None) and records.imported(run) == {}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', RUBBISH)
def test_rubbish_is_one_line(run, name, kind):
  content = RUBBISH[kind]
  put(run / name, content)
  if name == 'evals.jsonl' and content in (b'', ...):                # no line, and no file
    assert READERS[name](run) == []
  elif name == 'metrics.jsonl' and content in (b'', ...):
    assert refused(run, name) == 'has no line, and the run is finished'
    (run / 'DONE').unlink()
    assert READERS[name](run) == []
  else:
    assert refused(run, name)


@pytest.mark.parametrize('name, text, reason', [
    ('config.json', '{"train": 3}', 'train is no group'),
    ('config.json', '{"blocks": {"m": []}}', 'blocks.m is no layer'),
    ('config.json', '{"blocks": {"m": {"inner": {"router": 3}}}}', 'blocks.m.inner.router'),
    ('config.json', '{"data": {"vocab": 5}}', 'data.vocab is no text'),
    ('config.json', '{"data": {"mixture": [[]]}}', 'data.mixture'),
    ('env.json', '{"command": "stmoe"}', 'command is no list'),
    ('env.json', '{"devices": 3}', 'devices is no dict'),
    ('metrics.jsonl', '{"tokens": 1}\n', 'line 1 has no step'),
    ('metrics.jsonl', '{"step": 1}\n{"step": true}\n', 'line 2 has True for a step'),
    ('metrics.jsonl', '{"step": -1}\n', 'line 1 has -1 for a step'),
    ('metrics.jsonl', '{"step": 1, "eval/loss": "low"}\n', "has 'low' for 'eval/loss'"),
    ('metrics.jsonl', '{"step": 1, "tokens": 1' + '0' * 400 + '}\n', "for 'tokens', which is no number"),
    ('evals.jsonl', '{"step": 1, "eval/loss": 1.0}\n', 'line 1 has no field and value'),
    ('evals.jsonl', '{"step": 1, "field": "a", "value": 1, "eval/loss": []}\n', "for 'eval/loss'"),
    ('DONE', '{"tokens": 3}', 'has no step'),
    ('DONE', '{"step": 1, "time": "long"}', "has 'long' for 'time'"),
    ('metrics.jsonl', '{"step": 1, "time": {"seconds": []}}\n', "has [] for 'seconds'"),
    ('metrics.jsonl', '{"step": 1, "loss/ce": {}}\n', "has {} for 'loss/ce'"),
    ('best.json', '{"step": 1, "name": "eval/loss", "value": null}', 'has not step, name and value'),
    ('imported.json', '{"family": "t5", "dtype": "F32", "dtypes": [], "copies": []}', 'has not family'),
    ('ancestry.json', '{"facts": {}}', 'lineage'),
    ('ancestry.json', '{"facts": {}, "lineage": []}', 'has not facts and lineage'),
    ('ancestry.json', lineage(3), 'how the run was made'),
    ('ancestry.json', lineage(made(3)), 'how the run was made'),
    ('ancestry.json', lineage(made(parent(None, step='4'))), "'4' for step"),
    ('ancestry.json', lineage(made(parent(0))), 'made by entry 0 of 1'),
    ('ancestry.json', lineage(made(parent(1))), 'made by entry 1 of 1')])
def test_a_wrong_form_is_one_line(run, name, text, reason):
  put(run / name, text.encode())
  assert reason in refused(run, name)


@pytest.mark.parametrize('name, values, method, parents', [
    ('finetune.json', dict(start='runs/a', step=9, recipe=dict(load='all'), loaded=['x']), 'finetune',
     [('runs/a', 9)]),
    ('upcycle.json', dict(runs=[dict(run='runs/a', step=4), dict(run='runs/b', step=5)], noise=0.0,
                          granularity=1, optimizer='fresh'), 'upcycle', [('runs/a', 4), ('runs/b', 5)]),
    ('imported.json', dict(family='t5', dtype='F32', dtypes={}, copies=[], source='/hf/t5'), 'convert',
     [('/hf/t5', None)])])
def test_files_of_earlier_versions_have_a_form(tmp_path, name, values, method, parents):
  (tmp_path / name).write_text(json.dumps(values))
  found = records.ancestry(tmp_path)
  [entry] = found['lineage']
  assert entry['method'] == method and [(p['run'], p['step']) for p in entry['parents']] == parents
  if name != 'imported.json':
    assert found['facts'] == values
  (tmp_path / name).write_text(json.dumps(dict.fromkeys(values, 3)))
  with pytest.raises(errors.Damaged, match=f'{name}.*how the run was made'):
    records.ancestry(tmp_path)


ONE = dict(moe_load=np.ones((1, 8)), layers=np.array(['decoder_01']))


@pytest.mark.parametrize('arrays, reason', [
    (dict(ONE, moe_load=np.array([[{}] * 8])), 'allow_pickle'),
    (dict(layers=ONE['layers']), 'has no moe_load'),
    (dict(ONE, moe_load=np.ones((1, 2, 4))), 'has no moe_load'),
    (dict(ONE, moe_load=np.array([['a']])), 'moe_load'),
    (dict(moe_load=np.ones((1, 8))), 'the names of 1 layers'), (dict(ONE, layers=np.arange(1)), 'the names'),
    (dict(ONE, moe_load=np.ones((2, 8))), 'the names of 2 layers'),
    (dict(ONE, moe_load=np.ones((1, 3))), 'decoder_01 has 3 numbers where earlier steps have'),
    (ONE | {'state/bias': np.ones(8)}, 'no state of a router in state/bias'),
    (ONE | {'state/decoder_01/bias': np.ones((2, 8))}, 'no state of a router')])
def test_wrong_router_stats_are_one_line(run, arrays, reason):
  put(run / 'router_stats' / '40.npz', npz(**arrays))
  assert reason in refused(run, 'router_stats/40.npz')


def test_of_several_runs_a_bad_one_is_left_out_and_said(run):
  put(run / 'DONE', b'[]')
  said = []
  found = runs.read_all(runs.expand([run.parent]), say=said.append)
  assert [one.name for one in found] == ['sound'] and len(said) == 1 and 'left out' in said[0]
  with pytest.raises(errors.Damaged, match='DONE'):
    runs.read_all([run], say=said.append)

  def distrust(path):
    raise errors.UserError(f'{path} is another one')
  with pytest.raises(errors.UserError, match='another one'):
    runs.read_all([run.parent / 'sound'], check=distrust)


def test_a_damaged_line_is_named_and_no_other_is_lost(run):
  lines = (run / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
  put(run / 'metrics.jsonl', b''.join([lines[0], b'\xff' + lines[1], *lines[2:], b'{"step": 50']))
  said = []
  found = records.metrics(run, said.append)
  assert [json.loads(line)['step'] for line in (lines[0], *lines[2:])] == [line['step'] for line in found]
  assert [str(line).partition(': ')[2] for line in said] == ['line 2 is not UTF-8 (byte 0)']
