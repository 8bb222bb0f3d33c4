"""`stmoe eval --tasks`: untrained models are at chance, tables, a figure, and mistakes in one line."""

import json

import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import canvas
from stmoe.analysis.figures import calibration
from stmoe.answer import harness
from stmoe.metrics import big_bench as metrics
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs
from stmoe.train import state as states
from tests.answer import test_task_files
from tests.cli import test_infer
from tests.train import tiny_run

HERE = test_task_files.HERE
SEEDS = 0, 1, 2


@pytest.fixture(scope='module')
def lm(tmp_path_factory, one_device, one_size_of_blocks):
  """An untrained run, on one device."""
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('task_files'))
  return test_infer.write_run(folder / 'lm', tiny_run.config(folder, **{'eval.batch_size': 64}))


@pytest.fixture(scope='module')
def untrained(tmp_path_factory, one_device, one_size_of_blocks):
  """seed -> a system, that seed's model before training; all seeds have one compiled program."""
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('untrained'))
  config = lambda seed: tiny_run.config(folder, **{'seed': seed, 'data.length': 128, 'eval.batch_size': 64})
  bridge = harness.Harness(test_infer.write_run(folder / 'lm', config(0)), 64)

  def of(seed):
    cfg = config(seed)
    with states.on_mesh(cfg.mesh) as mesh:
      drawn = states.init(cfg, states.blueprint(cfg, mesh))
    bridge._numbers = drawn['params'], drawn['router_state']
    return test_task_files.task_files.Continuing(bridge, 8)
  return of


@pytest.mark.slow
def test_an_untrained_run_has_tables_and_a_figure(lm, command, tmp_path):
  for name in ('known_unknowns', 'simple_arithmetic_json_multiple_choice',
               'simple_arithmetic_multiple_targets_json'):
    (tmp_path / f'{name}.json').symlink_to(HERE / f'{name}.json')
  code, out, err = command('eval', lm, '--tasks', tmp_path, '--shots', '0,1')
  assert code == 0 and 'step 1' in err, err
  assert 'lose their beginning' in out and out.count('known_unknowns') == 2 and 'per byte' in out
  record = json.loads((lm / 'results_big_bench.json').read_text())
  assert len(record['tasks']['1']['known_unknowns']['shortest']) == 2
  assert f'known_unknowns/{metrics.PER_BYTE}@1-shot' in record['scores']
  figure = calibration.draw(runs.Run(lm, 'lm', {}, {}, [], {}, {}, None))[calibration.STEM]
  assert len(canvas.encode(figure, 'png')) > 5000 and len(figure.axes[0].collections) >= 2


@pytest.mark.slow
def test_untrained_models_are_at_chance_per_byte(untrained):
  """No grade is 3 deviations away, and together they stray as chance does; sums are for short choices."""
  tasks = [test_task_files.big_bench.read(HERE / f'{name}.json')[0] for name in (
      'code_line_description', 'known_unknowns', 'simple_arithmetic_json_multiple_choice')]
  away = []
  for seed in SEEDS:
    for task in tasks:
      found = test_task_files.task_files.judge(task, untrained(seed))[task.name]
      away.append((found.scores[metrics.PER_BYTE] - found.low) / found.low_spread)
      if task.name == 'code_line_description':           # where the right choice is seldom the shortest
        summed = found.scores[metrics.GRADE]
        assert summed < found.low - 3 * found.low_spread and abs(summed - found.shortest[0]) < 0.03
  assert len(away) == 9 and np.abs(away).max() < 3 and np.sqrt(np.mean(np.square(away))) < 1.5, away


def test_other_mistakes(lm, mistake, tmp_path):
  assert 'none.json: No such file' in mistake('eval', lm, '--tasks', tmp_path / 'none.json')
  assert 'no task in it' in mistake('eval', lm, '--tasks', tmp_path)
  assert 'numbers between commas' in mistake('eval', lm, '--tasks', HERE, '--shots', 'few')
  assert '--shots is for --tasks' in mistake('eval', lm, '--shots', '1')
  assert '--tasks and --task do not' in mistake('eval', lm, '--tasks', HERE, '--task', 'boolq')
  (tmp_path / 'x.json').write_text('{')
  assert 'x.json: is not JSON' in mistake('eval', lm, '--tasks', tmp_path / 'x.json')
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'task.json').write_text(json.dumps(test_task_files.TASK))
  (tmp_path / 'x.json').unlink()
  assert 'has the name sum, too' in mistake('eval', lm, '--tasks', tmp_path).replace("'", '')
  (lm / 'results_big_bench.json').write_text('{"calibration": {"0": [[1]]}}')
  with pytest.raises(errors.UserError, match='has no bins'):
    calibration.draw(runs.Run(lm, 'lm', {}, {}, [], {}, {}, None))


@pytest.mark.slow
def test_a_run_of_pairs_reads_prompts_as_sources(lm, command, tmp_path):
  rows = [dict(inputs=f'is {i} even', targets='no' if i % 2 else 'yes', choices=['yes', 'no'])
          for i in range(40)]
  (tmp_path / 'even.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  changed = {'data.task': 'jsonl', 'data.jsonl': (str(tmp_path / 'even.jsonl'),), 'data.files': (),
             'data.objective': 'prompted', 'data.join': False, 'data.length': 64}
  run = test_infer.write_run(tmp_path / 'run', tiny_run.config(tmp_path, **changed))
  name = 'simple_arithmetic_json_multiple_choice'
  code, out, err = command('eval', run, '--tasks', HERE / f'{name}.json', '--json')
  assert code == 0, err
  record = json.loads(out)
  assert record['cut_rows'] is None and record['tasks']['0'][name]['examples'] == 8
  (tmp_path / 'written.json').symlink_to(HERE / 'simple_arithmetic_multiple_targets_json.json')
  code, out, err = command('eval', run, '--tasks', tmp_path / 'written.json')
  assert code == 0 and 'exact_str_match' in out, err
  with states.on_mesh(dict(data=1, expert=1, model=1)):
    [task] = test_task_files.big_bench.read(HERE / f'{name}.json')
    with test_task_files.task_files.system(rundir.load(run), run, [task], lambda line: None) as (system, _):
      texts = [text for text, _ in test_task_files.big_bench.prompts(task)]
      found = system.rank(texts[:2], [['1', '22'], ['3']])
      assert [len(scores) for scores in found] == [2, 1]
      alone = system.rank([texts[0]], [['22']])[0][0]
      assert found[0][1] == pytest.approx(alone, rel=1e-4)
