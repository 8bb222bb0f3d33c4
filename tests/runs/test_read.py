"""Reading run directories, and the table of results, without a trainer."""

import json

import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import baselines
from stmoe.analysis import table
from stmoe.runs import read as runs
from tests.analysis import synthetic


def test_series_pairs_only_lines_that_have_both(tmp_path):
  run = runs.read(synthetic.write_run(tmp_path / 'a', steps=80))
  steps, bits = run.series('eval/bits_per_byte')
  tokens, _ = run.series('eval/bits_per_byte', 'tokens')
  assert steps.tolist() == [40, 80] and tokens.tolist() == [40 * 1024, 80 * 1024]
  assert run.last('eval/bits_per_byte') == bits[-1]
  assert run.last('no/such/metric') is None


def test_resumed_run_counts_the_later_line_and_skips_a_cut_one(tmp_path):
  folder = synthetic.write_run(tmp_path / 'a', steps=20)
  with (folder / 'metrics.jsonl').open('a') as f:
    f.write(json.dumps({'step': 10, 'loss/ce': 7.0}) + '\n{"step": 30, "loss/c')
  steps, values = runs.read(folder).series('loss/ce')
  assert steps.tolist() == [10, 20]
  assert values[0] == 7.0


def test_non_finite_values_are_no_points(tmp_path):
  folder = synthetic.write_run(tmp_path / 'a', steps=20)
  (folder / 'metrics.jsonl').write_text('{"step": 1, "loss/ce": NaN}\n{"step": 2, "loss/ce": 3.0}\n')
  assert runs.read(folder).series('loss/ce')[0].tolist() == [2]


def test_loss_that_diverged_at_the_end_is_not_the_one_before_it(tmp_path):
  folder = synthetic.write_run(tmp_path / 'a', steps=80)
  with (folder / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 90, "loss/ce": 3.0}\n{"step": 120, "loss/ce": null, "eval/loss": null}\n')
  run = runs.read(folder)
  assert run.last('eval/loss') is None and run.last('loss/ce') is None
  assert run.last('eval/accuracy') == 0.5                            # what was not logged again still counts
  assert run.series('eval/loss')[0].tolist() == [40, 80]


def test_loads_are_per_layer_and_ordered_by_step(tmp_path):
  run = runs.read(synthetic.write_run(tmp_path / 'a', steps=200, experts=4))
  steps, load = run.loads['decoder_03']
  assert steps.tolist() == list(range(20, 201, 20))                  # 20, 40, ..., not '100' before '20'
  assert load.shape == (10, 4)
  np.testing.assert_allclose(load.sum(1), 1024, rtol=1e-5)
  assert run.layers('drop_frac') == ['decoder_01', 'decoder_03']


def test_folder_of_runs_is_no_run_and_says_what_is_inside(tmp_path):
  synthetic.write_run(tmp_path / 'inside')
  with pytest.raises(errors.UserError, match='runs inside inside'):
    runs.read(tmp_path)


def test_equal_folder_names_are_told_apart(tmp_path):
  paths = [synthetic.write_run(tmp_path / parent / 'switch') for parent in ('a', 'b')]
  assert [run.name for run in runs.read_all([*paths, paths[0]])] == ['a/switch', 'b/switch']


def test_differences_name_changed_and_missing_fields():
  a = dict(seed=0, train=dict(steps=1, clip=1.0))
  b = dict(seed=0, train=dict(steps=2), blocks=dict(m=1))
  assert runs.differences([a, b]) == {'train.steps': [1, 2], 'train.clip': [1.0, None], 'blocks.m': [None, 1]}
  assert runs.differences([a, a]) == {}


def test_group_gives_mean_and_sample_deviation_over_seeds():
  rows = [dict(bits=2.0, drops=0.1), dict(bits=2.4, drops=None), dict(bits=9.0, drops=0.2)]
  grouped = table.group(rows, ['switch', 'switch', 'dense'])
  mean, deviation, seeds = grouped['switch']['bits']
  assert (round(mean, 6), seeds) == (2.2, 2)
  assert deviation == pytest.approx(np.sqrt(0.08))                   # sqrt((0.2**2 + 0.2**2) / (2 - 1))
  assert grouped['switch']['drops'] is None and grouped['dense']['bits'] == (9.0, 0.0, 1)


def test_time_per_step_is_paired_with_the_dense_run_of_the_same_seed():
  row = lambda time, balance: dict(time=time, steps=10, balance=balance)
  rows = [row(2.0, None), row(4.0, None), row(4.0, 1.5), row(4.0, 1.5)]
  grouped = table.group(rows, ['dense', 'dense', 'switch', 'switch'])
  assert grouped['switch']['slowdown'][0] == 1.5 and grouped['dense']['slowdown'] == (1.0, 0.0, 2)
  assert 'slowdown' not in table.group(rows[2:], ['switch', 'gshard'])['switch']


def test_cells_leave_out_what_nobody_has_and_mark_what_one_lacks():
  grouped = table.group([dict(bits=2.0, drops=0.125, time=None), dict(bits=2.5, drops=None, time=None)], 'ab')
  headings, rows = table.cells(grouped)
  assert headings == ['run', 'bits/byte', 'drops']
  assert rows == [['a', '2.000', '12.5%'], ['b', '2.500', '–']]
  assert table.plain(headings, rows).splitlines()[2].split() == ['a', '2.000', '12.5%']


@pytest.mark.parametrize('number, text', [(0, '0'), (999, '999'), (1_240_000, '1.24M'), (2.5e12, '2.5T'),
                                          (999.7, '1k'), (999_499, '999k'), (999_999, '1M')])
def test_engineering(number, text):
  assert table.engineering(number) == text


@pytest.mark.parametrize('seconds, text', [(12.3, '12 s'), (123, '2 min 03 s'), (3900, '1 h 05 min')])
def test_duration(seconds, text):
  assert table.duration(seconds) == text


def test_baselines_hold_only_for_one_common_task(tmp_path):
  stdlib, other = (runs.read(synthetic.write_run(tmp_path / name)) for name in 'ab')
  other.config['data']['task'] = 'text'
  assert baselines.common([stdlib, stdlib])['byte 3-gram'] == 2.616
  assert baselines.common([stdlib, other]) == {} == baselines.common([other])


def test_folders_stand_for_the_runs_in_them(tmp_path):
  paths = [synthetic.write_run(tmp_path / name, layers=()) for name in ('b', 'a')]
  (tmp_path / 'plots').mkdir()
  assert runs.expand([tmp_path, paths[0]]) == [tmp_path / 'a', tmp_path / 'b', tmp_path / 'b']
  for path in (tmp_path / 'plots', tmp_path / 'nope'):               # wrong beside a right one, too
    with pytest.raises(errors.UserError, match=f'{path.name} is not a run directory'):
      runs.expand([paths[0], path])


def test_runs_that_differ_in_more_than_the_seed_have_labels_of_their_own(tmp_path):
  for name, extra in dict(x_seed0={}, x_seed1={}, x_seed2=dict(more=1), y=dict(more=2)).items():
    synthetic.write_run(tmp_path / name, layers=(), extra=extra)
  found = runs.read_all(runs.expand([tmp_path]))
  assert runs.labels(found) == ['x_seed0', 'x_seed0', 'x_seed2', 'y']
  assert runs.labels(found[:2] + found[3:]) == ['x', 'x', 'y']
  for seed in (0, 1):
    folder = tmp_path / f'z_seed{seed}'
    synthetic.write_run(folder, layers=(), seed=seed, extra=dict(table=str(folder.resolve() / 't.npz')))
  assert runs.labels(runs.read_all([tmp_path / 'z_seed0', tmp_path / 'z_seed1'])) == ['z', 'z']
