"""A sweep file becomes checked runs, whose ids say what they are and depend on nothing else."""

import json

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import plugins
from stmoe.sweep import plan
from stmoe.sweep import work


def write(tmp_path, body, name='sweep.py'):
  file = tmp_path / name
  file.write_text(f'"""A sweep."""\n{body}\n')
  return str(file)


def ids(path, tmp_path, **more):
  return [run.id for run in plan.load(path, workdir=tmp_path / 'runs', **more).runs]


ONE = "('a b/c', 'lm/stdlib:smoke', {'seed': 1, 'train.steps': 7})"
TWO = "('two', 'lm/stdlib:smoke', ['train.steps=9'])"


def test_ids_do_not_depend_on_order_or_spelling(tmp_path):
  one, two = ids(write(tmp_path, f'def runs():\n  yield {ONE}\n  yield {TWO}'), tmp_path)
  other = "('a b/c', 'lm/stdlib:smoke', ('--config.train.steps=7', 'seed=1'))"
  assert ids(write(tmp_path, f'def runs():\n  yield {TWO}\n  yield {other}'), tmp_path) == [two, one]
  assert one[:-8] == 'a_b_c-' and two[:-8] == 'two-' and one[-8:] != two[-8:]
  assert plan.identity('a', 'x', ['b=1', 'a=2']) == plan.identity('a', 'x', ['a=2', 'b=1'])
  assert plan.identity('a', 'x', ['a=2'])[-8:] == plan.identity('z', 'x', ['a=2'])[-8:]
  assert len({plan.identity('a', *what) for what in (('x', ['a=2']), ('x', ['a=3']), ('y', ['a=2']))}) == 3


def test_overrides_of_the_command_come_last_and_only_chooses(tmp_path):
  path = write(tmp_path, f'def runs():\n  yield {ONE}\n  yield {TWO}')
  all_of_it = plan.load(path, ['--config.train.steps=3', 'eval.batches=1'], workdir=tmp_path / 'runs')
  assert all_of_it.runs[0].overrides == ('eval.batches=1', 'seed=1', 'train.steps=3')
  assert [run.steps for run in all_of_it.runs] == [3, 3]
  assert [run.name for run in plan.load(path, workdir=tmp_path / 'runs', only='t*').runs] == ['two']
  with pytest.raises(errors.UserError, match="no run like 'tow'; nearest: two"):
    plan.load(path, only='tow')


def test_an_argument_goes_to_runs(tmp_path):
  path = write(tmp_path, "def runs(arg='small'):\n  yield (arg, 'lm/stdlib:smoke', {})", 'own.py')
  assert [run.name for run in plan.load(path).runs] == ['small']
  large = plan.load(f'{path}:large')
  assert (large.runs[0].name, large.question, str(large.workdir)) == ('large', 'own:large', 'runs/own_large')


@pytest.mark.parametrize('body, words', [
    ("def runs():\n  yield ('a', 'lm/stdlbi', {})", r"run 1 \(a\): no experiment is called 'lm/stdlbi'"),
    (f"def runs():\n  yield {ONE}\n  yield ('b', 'lm/stdlib', dict(sed=1))", r'run 2 \(b\): config.sed'),
    ("def runs():\n  yield ('b', 'lm/stdlib', {'train.steps': 'many'})",
     'train.steps=many: expected a whole number'),
    ("def runs():\n  yield dict(name='a', experiment='lm/stdlib:smoke', evaluations={'eval.drws': [1]})",
     'eval.drws does not exist; nearest: config.eval.draws'),
    ("def runs():\n  yield dict(name='a', experiment='lm/stdlib:smoke', evaluations={'eval.draws': ['x']})",
     'eval.draws=x: expected a whole number'),
    ("def runs():\n  yield 'lm/stdlib'", "'lm/stdlib' is neither"),
    ("def runs():\n  yield dict(name='a', experiment='lm/stdlib', override={})", 'is neither'),
    (f'def runs():\n  yield {TWO}\n  yield {TWO}', 'run 2: two is there already'),
    ("def runs():\n  yield ('a', 'lm/stdlib', {})\n  yield ('b', 'lm/stdlib', {})", '2: b is there already'),
    ('def run():\n  pass', r'defines no runs\(\)'), ('runs = 3', r'defines no runs\(\)'),
    ('def runs():\n  yield from [1 / 0]', 'py, line 3: ZeroDivisionError: division by zero'),
    ('def runs():\n  yield from ()', 'yields nothing')])
def test_mistakes(tmp_path, body, words):
  with pytest.raises(errors.UserError, match=words):
    plan.load(write(tmp_path, body))


def test_mistakes_in_names(tmp_path):
  path = write(tmp_path, f'def runs():\n  yield {ONE}')
  for where, words in ((f'{path}:large', 'takes no argument'), ('no_such', 'with a sweep.py is called'),
                       (str(tmp_path / 'x.py'), 'no such file')):
    with pytest.raises(errors.UserError, match=words):
      plan.load(where)


def test_another_experiment_in_the_directory_is_no_gap(sweep):
  run, = sweep(0).runs
  config, _ = experiment.load('lm/stdlib:smoke', ['model.d_model=64', 'train.steps=3'])
  run.workdir.mkdir(parents=True)
  (run.workdir / 'config.json').write_text(experiment.to_json(config))
  with pytest.raises(errors.UserError, match='another experiment: model.d_model is 64'):
    sweep(0)


def test_done_means_all_steps_and_all_evaluations(sweep):
  run, = sweep(0, evaluations={'eval.draws': [1, 2]}).runs
  run.workdir.mkdir(parents=True)
  assert not plan.is_trained(run)
  (run.workdir / 'DONE').write_text('{"step": 2}')                   # of a shorter run, continued since
  assert not plan.is_trained(run)
  (run.workdir / 'DONE').write_text('{"step": 3}')
  line = lambda value, step: json.dumps(dict(field='eval.draws', value=value, step=step)) + '\n'
  (run.workdir / 'evals.jsonl').write_text(line(1, 3) + line(2, 2) + line(1, 3))
  assert plan.is_trained(run) and not plan.is_done(run)
  assert plan.missing_evaluations(run) == ['eval.draws=1;2;']
  (run.workdir / 'evals.jsonl').write_text(line(1, 3) + line(2, 3))
  assert plan.is_done(run)


START = """
def runs():
  for seed in (0, 1):
    dense = ('dense', 'upcycling/stdlib:method=dense', {'seed': seed})
    yield dict(name='sparse', experiment='upcycling/stdlib:method=grains', overrides={'seed': seed},
               start={'run': dense, 'flags': ['--granularity', '2']})
    yield dense
"""


def test_a_run_may_start_from_another(tmp_path):
  path = write(tmp_path, START)
  sparse, dense, *_ = found = plan.load(path, ['train.steps=9'], workdir=tmp_path / 'runs').runs
  assert sparse.after == dense.id and sparse.start == (str(dense.workdir), '--granularity', '2')
  upcycle, train = work.commands(sparse)
  assert upcycle == ['upcycle', str(dense.workdir), sparse.experiment, *train[2:], '--granularity', '2']
  (sparse.workdir / 'checkpoints' / '5').mkdir(parents=True)         # it was begun
  assert work.commands(sparse) == [train]
  assert len({run.id for run in found}) == 4
  other = write(tmp_path, START.replace("'2'", "'4'"))
  assert plan.load(other, ['train.steps=9'], workdir=tmp_path / 'runs').runs[0].id != sparse.id
  lonely = write(tmp_path, START.replace('    yield dense\n', ''))
  with pytest.raises(errors.UserError, match='sparse starts from dense-.*, which is no run of this file'):
    plan.load(lonely)


def test_only_brings_the_runs_that_the_chosen_ones_start_from(tmp_path):
  path = write(tmp_path, START)
  names = lambda only: [run.name for run in plan.load(path, workdir=tmp_path / 'runs', only=only).runs]
  assert names('sparse') == ['sparse', 'dense'] * 2 and names('dense') == ['dense'] * 2


MADE = """
def runs():
  dense = ('dense', 'upcycling/stdlib:method=dense', {'seed': 1, 'train.steps': 8})
  first = dict(name='first', overrides={'train.steps': 3},
               start={'run': dense, 'command': 'factorise', 'method': 'a:b=1', 'flags': ['--evaluate']})
  yield dense
  yield first
  yield dict(name='second', overrides={'seed': 2},
             start={'run': first, 'command': 'compress', 'method': 'c'})
"""


def test_a_surgery_may_make_a_run_of_another_and_of_that(tmp_path):
  path = write(tmp_path, MADE)
  dense, first, second = plan.load(path, ['eval.batches=1'], workdir=tmp_path / 'runs').runs
  assert (first.after, second.after) == (dense.id, first.id)
  assert (first.experiment, first.steps, second.steps) == (dense.experiment, 3, 3)
  make, train = work.commands(first)
  assert make == ['factorise', str(dense.workdir), 'a:b=1', '--workdir', str(first.workdir),
                  '--config.eval.batches=1', '--config.train.steps=3', '--evaluate']
  assert train == ['train', str(first.workdir)]
  assert work.commands(second)[0][:3] == ['compress', str(first.workdir), 'c']
  (second.workdir / 'checkpoints' / '0').mkdir(parents=True)         # it was made
  assert work.commands(second) == [['train', str(second.workdir)]]
  changed = write(tmp_path, MADE.replace('b=1', 'b=2'))
  other = plan.load(changed, ['eval.batches=1'], workdir=tmp_path / 'runs')
  assert [run.id for run in other.runs[:1]] == [dense.id] and not {first.id, second.id} & {
      run.id for run in other.runs}
  for changed, said in (
      (MADE.replace("'method': 'c'}", "'method': 'c'}, experiment='lm/stdlib'"), 'is neither'),
      (MADE.replace('  yield first\n', ''), 'second starts from first-.*, which is no run of this file')):
    with pytest.raises(errors.UserError, match=said):
      plan.load(write(tmp_path, changed))


TUNED = """
def runs():
  dense = ('dense', 'upcycling/stdlib:method=dense', {'seed': 1})
  yield dense
  yield dict(name='tuned', experiment='finetune/jsonl', overrides={'train.steps': 3, 'data.jsonl': 'a.jsonl'},
             start={'run': dense, 'command': 'finetune', 'flags': ['--step', '7']})
"""


def test_a_command_may_make_a_run_of_its_own_experiment_from_another(tmp_path):
  path = write(tmp_path, TUNED)
  dense, tuned = plan.load(path, workdir=tmp_path / 'runs').runs
  assert (tuned.after, tuned.experiment, tuned.steps) == (dense.id, 'finetune/jsonl', 3)
  make, train = work.commands(tuned)
  assert make == ['finetune', str(dense.workdir), 'finetune/jsonl', '--workdir', str(tuned.workdir),
                  '--config.data.jsonl=a.jsonl', '--config.train.steps=3', '--step', '7']
  assert train == ['train', str(tuned.workdir)]
  tuned.workdir.mkdir(parents=True)
  of_start, _ = experiment.load('upcycling/stdlib:method=dense')     # its model is that of the start
  (tuned.workdir / 'config.json').write_text(experiment.to_json(of_start))
  assert plan.load(path, workdir=tmp_path / 'runs').runs[1] == tuned
  other = write(tmp_path, TUNED.replace("'finetune',", "'other',"))
  assert plan.load(other, workdir=tmp_path / 'runs').runs[1].id != tuned.id
  for changed, said in (
      (TUNED.replace("experiment='finetune/jsonl', ", ''), 'is neither'),
      (TUNED.replace("'train.steps'", "'train.stps'"), 'config.train.stps does not exist; nearest')):
    with pytest.raises(errors.UserError, match=said):
      plan.load(write(tmp_path, changed))


PREPARED = """def runs():
  yield dict(name='a', experiment='lm/stdlib:smoke,method=hash',
             prepare=[['tables', 'x', '-o', '{run}/t.npz']],
             overrides={'blocks.m.router.table': '{run}/t.npz'})"""


def test_a_run_may_be_prepared_with_files_in_its_own_directory(tmp_path):
  path = write(tmp_path, PREPARED)
  [run] = plan.load(path, workdir=tmp_path / 'runs').runs
  table = str(run.workdir.resolve() / 't.npz')
  assert run.overrides == (f'blocks.m.router.table={table}',)
  assert [words[0] for words in work.commands(run)] == ['tables', 'train']
  assert work.commands(run)[0] == ['tables', 'x', '-o', table]
  assert work.commands(run)[1][-1] == f'--config.blocks.m.router.table={table}'
  [same] = plan.load(path, ['seed=3'], workdir=tmp_path / 'runs').runs
  assert work.commands(same)[0][-1] == '--config.seed=3'
  [elsewhere] = plan.load(path, workdir=tmp_path / 'others').runs
  assert elsewhere.id == run.id and elsewhere.overrides != run.overrides
  [other] = plan.load(write(tmp_path, PREPARED.replace("'x'", "'y'")), workdir=tmp_path / 'runs').runs
  assert other.id != run.id                                          # trained on another preparation
  (run.workdir / 'checkpoints' / '3').mkdir(parents=True)
  assert [words[0] for words in work.commands(run)] == ['train']


def test_a_folder_of_runs_without_defaults_goes_on(tmp_path):
  """Ids do not depend on the defaults, and a config.json that lacks them is the same configuration."""
  path = write(tmp_path, f'def runs():\n  yield {ONE}')
  [run] = plan.load(path, workdir=tmp_path / 'runs').runs
  assert run.id == 'a_b_c-ea615b71'                                  # as it was before defaults were there
  fields = experiment.load('lm/stdlib:smoke', run.overrides)[0].to_dict()
  del fields['decode'], fields['model']['attention'], fields['blocks']['m']['router']['min_capacity']
  run.workdir.mkdir(parents=True)
  (run.workdir / 'config.json').write_text(json.dumps(fields))
  assert plan.load(path, workdir=tmp_path / 'runs').runs == (run,)


def test_commands_name_the_plugins_that_the_sweep_was_given(tmp_path, monkeypatch):
  monkeypatch.setenv(plugins.VARIABLE, '')
  [run] = plan.load(write(tmp_path, f'def runs():\n  yield {ONE}'), workdir=tmp_path / 'runs').runs
  [plain] = work.commands(run)
  file = tmp_path / 'mine.py'
  file.write_text('def execute(x, a, experts, key=None):\n  return x\n')
  plugins.add(file)
  assert work.commands(run) == [[*plain, '--plugin', str(file)]]     # where this process's variables are not


def test_a_file_that_is_named_without_its_ending_is_named_whole(tmp_path, monkeypatch):
  write(tmp_path, f'def runs():\n  yield {ONE}', 'mysweep.py')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match="is called 'mysweep'; nearest: mysweep.py "):
    plan.load('mysweep')
  with pytest.raises(errors.UserError, match="is called 'mysweep'; nearest: mysweep.py "):
    experiment.load('mysweep')
