"""Planning, resuming and collecting of comparisons, with a function in place of the trainer."""

import argparse
import json
import shlex
import subprocess
import sys

import pytest

from stmoe import errors
from stmoe import plugins
from stmoe.cli import compare as command
from stmoe.cli import main
from stmoe.sweep import compare
from tests.analysis import synthetic

REQUEST = dict(experiments=['lm/a:method=dense', 'lm/a:method=switch'], seeds=[0, 1], by='flops',
               overrides=[])


def jobs(seeds=(0, 1), methods=('dense', 'switch'), steps=None):
  variants = compare.expand(['lm/a'], [f'method={method}' for method in methods])
  costs = [dict(parameters=10, active=10, flops_per_token=2.0, flops_per_step=200.0),
           *[dict(parameters=80, active=10, flops_per_token=2.5, flops_per_step=250.0)] * (len(methods) - 1)]
  steps = steps or compare.equal_budget(100, [c['flops_per_step'] for c in costs])
  return compare.plan(variants, seeds, costs, steps)


def finish(job, folder):
  synthetic.write_run(folder, job.label, seed=job.seed, steps=40, final=2.0 if job.label == 'switch' else 3.0)
  return 0


def test_expand_appends_arguments_and_labels_by_their_value():
  variants = compare.expand(['lm/a:smoke'], ['method=dense', 'method=switch'])
  assert [(v.experiment, v.label) for v in variants] == [
      ('lm/a:smoke,method=dense', 'dense'), ('lm/a:smoke,method=switch', 'switch')]
  assert [v.label for v in compare.expand(['lm/a', 'lm/b'], [])] == ['lm/a', 'lm/b']


def test_the_same_experiment_twice_is_refused():
  with pytest.raises(errors.UserError, match='twice'):
    compare.expand(['lm/a', 'lm/a'], [])


def test_equal_budget_adjusts_steps_to_the_first():
  # 100 steps of 200 FLOPs are 20,000: 80 steps of 250, 50 of 400, and 105 of 190 (19,950).
  assert compare.equal_budget(100, [200.0, 250.0, 400.0, 190.0]) == [100, 80, 50, 105]


def test_plan_has_every_seed_in_its_own_folder_with_its_overrides():
  planned = jobs()
  assert [j.folder for j in planned] == ['dense_seed0', 'dense_seed1', 'switch_seed0', 'switch_seed1']
  assert planned[3].overrides == ('train.steps=80', 'seed=1')
  assert planned[0].flops == planned[3].flops == 20_000
  assert [j.folder for j in jobs(seeds=(3,))] == ['dense', 'switch']


def test_seeds_are_proposed_where_there_is_one(tmp_path):
  proposed = lambda seeds: ' '.join(command.following(['lm/a'], tmp_path, jobs(seeds)))
  assert '--seeds' in proposed((3,)) and '--seeds' not in proposed((0, 1))


def test_what_is_proposed_can_be_typed_and_is_this_comparison(tmp_path, monkeypatch):
  """As the command line reads it: with the same plugins, overrides and budget, whatever stands in names."""
  file = tmp_path / 'my router.py'
  monkeypatch.setattr(plugins, 'words', lambda: ['--plugin', str(file)])
  parser = main.Parser(prog='stmoe compare')
  command.add_arguments(parser)

  def typed(line):
    words, overrides = main.split_overrides(main.plugged(shlex.split(line)[2:]))
    return vars(parser.parse_args(words)) | dict(overrides=overrides)

  added = []
  monkeypatch.setattr(plugins, 'add', added.append)
  line = f"stmoe compare lm/a my.py:smoke --methods dense,switch --by time --workdir '{tmp_path}/my runs'" \
         " '--config.blocks.m.executor=all_to_all:chunks=2' --config.train.steps 8"
  asked = typed(line)
  words = command.asked(argparse.Namespace(**asked))
  seeds, report, _ = command.following(words, asked['workdir'], jobs((3,)))
  again = typed(seeds)
  assert again.pop('seeds') == '0,1,2' and str(again.pop('workdir')) == f'{tmp_path}/my runs_seeds'
  assert again == {key: value for key, value in asked.items() if key not in ('seeds', 'workdir')}
  assert shlex.split(report) == ['stmoe', 'report', f'{tmp_path}/my runs/switch', '--text', 'FILE',
                                 '--plugin', str(file)]
  assert added == [str(file)]


def test_interrupted_comparison_continues_where_it_stopped(tmp_path):
  calls, said = [], []

  def train(job, folder):
    calls.append(job.folder)
    return 130 if len(calls) == 2 else finish(job, folder)           # the second call is interrupted

  assert compare.run(tmp_path, jobs(), train, said.append) == 130
  assert compare.run(tmp_path, jobs(), train, said.append) == 0
  assert calls == ['dense_seed0', 'dense_seed1', 'dense_seed1', 'switch_seed0', 'switch_seed1']
  assert compare.run(tmp_path, jobs(), train, said.append) == 0 and len(calls) == 5
  assert said[0].startswith('[1/4] dense, seed 0: 100 steps, 20k active FLOPs')
  assert 'for all that is left' in said[-1]


def test_time_left_scales_with_flops_left(tmp_path):
  planned = jobs()
  finish(planned[0], tmp_path / planned[0].folder)                   # 40 steps of 0.1 s, see synthetic
  said = []
  compare.run(tmp_path, planned, lambda job, folder: None, said.append)
  assert said[0].endswith('about 12 s for all that is left')         # three jobs of equal FLOPs remain


def test_plan_is_kept_and_another_request_in_its_place_is_refused(tmp_path):
  assert compare.stored(tmp_path, REQUEST) is None
  compare.store(tmp_path, REQUEST, jobs())
  assert compare.stored(tmp_path, REQUEST) == jobs()
  with pytest.raises(errors.UserError, match=r'another comparison \(by: "flops", now "time"\)'):
    compare.stored(tmp_path, {**REQUEST, 'by': 'time'})


def test_another_list_of_experiments_is_named_by_what_differs(tmp_path):
  compare.store(tmp_path, REQUEST, jobs())
  others = ['lm/a:method=dense', *(f'lm/a:method=m{number}' for number in range(9))]
  with pytest.raises(errors.UserError) as raised:
    compare.stored(tmp_path, REQUEST | dict(experiments=others))
  assert str(raised.value) == (
      f'{tmp_path} holds another comparison (experiments only there: lm/a:method=switch; only here: '
      'lm/a:method=m0, lm/a:method=m1, lm/a:method=m2, lm/a:method=m3 and 5 more); choose another --workdir')
  with pytest.raises(errors.UserError, match='experiments in another order'):
    compare.stored(tmp_path, REQUEST | dict(experiments=REQUEST['experiments'][::-1]))
  with pytest.raises(errors.UserError, match=r'seeds only here: 2\)'):
    compare.stored(tmp_path, REQUEST | dict(seeds=[0, 1, 2]))


def test_a_comparison_of_more_methods_keeps_the_runs_that_are_there(tmp_path):
  more = REQUEST | dict(experiments=['lm/a:method=dense', 'lm/a:method=hash', 'lm/a:method=switch'])
  calls = []
  train = lambda job, folder: calls.append(job.folder) or finish(job, folder)
  compare.store(tmp_path, REQUEST, jobs())
  assert compare.run(tmp_path, jobs(), train, lambda line: None) == 0
  (tmp_path / 'report.html').write_text('of two methods')
  assert compare.stored(tmp_path, more) is None                      # to be planned
  compare.store(tmp_path, more, jobs(methods=('dense', 'hash', 'switch')))
  planned = compare.stored(tmp_path, more)
  assert not (tmp_path / 'report.html').exists() and len(planned) == 6
  assert compare.run(tmp_path, planned, train, lambda line: None) == 0
  assert calls == [job.folder for job in jobs()] + ['hash_seed0', 'hash_seed1']
  assert compare.default_workdir(['lm/a'], more).parts[0] == 'runs'
  with pytest.raises(errors.UserError, match='where switch had other steps or costs'):
    compare.store(tmp_path, more, jobs(steps=(100, 80, 79), methods=('dense', 'hash', 'switch')))
  assert compare.stored(tmp_path, more) == planned


def test_results_are_means_over_seeds_and_are_stored(tmp_path):
  planned = jobs()
  compare.store(tmp_path, REQUEST, planned)
  compare.run(tmp_path, planned, finish, lambda line: None)
  grouped = compare.results(*compare.read_runs(tmp_path, planned, print))
  compare.store_results(tmp_path, grouped)
  stored = json.loads((tmp_path / compare.FILE).read_text())['results']
  assert stored['switch']['bits']['mean'] < stored['dense']['bits']['mean']
  assert stored['switch']['bits']['seeds'] == 2
  assert stored['switch']['parameters'] == dict(mean=80.0, sd=0.0, seeds=2)
  assert compare.stored(tmp_path, REQUEST) == planned                # still readable with results in it


def test_a_run_that_cannot_be_read_is_left_out_and_said(tmp_path):
  planned, said = jobs(), []
  compare.run(tmp_path, planned, finish, lambda line: None)
  (tmp_path / planned[0].folder / 'DONE').write_text('[]')
  found, labels, _ = compare.read_runs(tmp_path, planned, said.append)
  assert len(found) == len(labels) == 3 and len(said) == 1 and 'DONE: holds a list' in said[0]
  assert compare.run(tmp_path, planned, None, said.append) == 0      # nor is anything trained again


@pytest.mark.parametrize('change', [
    lambda job: job.pop('seed'), lambda job: job.update(folder='../elsewhere'),
    lambda job: job.update(steps='4'), lambda job: job.update(cost={}),
    lambda job: job.update(overrides=[3])])
def test_a_stored_plan_that_is_none_is_one_line(tmp_path, change):
  compare.store(tmp_path, REQUEST, jobs())
  content = json.loads((tmp_path / compare.FILE).read_text())
  change(content['jobs'][0])
  (tmp_path / compare.FILE).write_text(json.dumps(content))
  with pytest.raises(errors.Damaged, match='compare.json: has not the request and the jobs'):
    compare.stored(tmp_path, REQUEST)


def test_no_two_variants_share_a_folder():
  variants = [compare.Variant('a', 'x/y'), compare.Variant('b', 'x_y')]
  cost = dict(parameters=1, active=1, flops_per_token=1, flops_per_step=1)
  with pytest.raises(errors.UserError, match='x/y and x_y would have one folder'):
    compare.plan(variants, [0], [cost, cost], [1, 1])


def test_looking_at_a_finished_comparison_needs_no_jax():
  code = 'import sys; from stmoe.sweep import compare; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_a_comparison_that_nobody_names_a_folder_for_has_its_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names, other = ['lm/a', 'lm/b'], REQUEST | dict(seeds=[2])
  plain = compare.default_workdir(names, REQUEST)
  assert str(plain) == 'runs/lm_a__lm_b'
  plain.mkdir(parents=True)
  compare.store(plain, REQUEST, jobs())
  assert compare.default_workdir(names, REQUEST) == plain
  own = compare.default_workdir(names, other)
  assert own.name.startswith('lm_a__lm_b-')
  own.mkdir()
  compare.store(own, other, jobs())
  assert compare.default_workdir(names, other) == own
  run = tmp_path / 'runs' / 'lm_a'
  run.mkdir()
  (run / 'config.json').write_text('{}')                              # a run of this name
  assert compare.default_workdir(['lm/a'], REQUEST).name.startswith('lm_a-')
