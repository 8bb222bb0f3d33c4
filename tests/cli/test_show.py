"""stmoe list, show and diff print what the experiments hold."""

import json
import sys

import jax
import pytest

from stmoe import experiment
from stmoe.cli import show
from stmoe.runs import directory as rundir
from stmoe.train import loop

NAME = 'lm/text:method=switch,smoke'


def test_list_shows_names_and_lines_and_filters(command):
  code, out, _ = command('list')
  assert code == 0
  found = experiment.available()
  assert [line.split()[0] for line in out.splitlines()] == list(found)
  assert all(text in out for text in found.values())
  filtered = [line.split()[0] for line in command('list', 'lm', 'text')[1].splitlines()]
  has = lambda name: all(word in f'{name} {found[name]}'.lower() for word in ('lm', 'text'))
  assert filtered == [name for name in found if has(name)] != []


def test_show_prints_every_field_after_overrides(command):
  code, out, _ = command('show', 'lm/stdlib:smoke', '--config.train.steps=77')
  config, name = experiment.load('lm/stdlib:smoke', ['train.steps=77'])
  lines = out.splitlines()
  assert code == 0 and lines[0].startswith(name) and experiment.run_id(config)[:8] in lines[0]
  assert '  steps           77' in lines
  shown = {line.split()[0] for line in lines[1:]}
  assert shown >= {key.rpartition('.')[2] for key in experiment.flatten(config)}


def test_show_json_is_the_resolved_configuration(command):
  _, out, _ = command('show', 'lm/stdlib', '--json', '--config.seed', '5')
  config, _ = experiment.load('lm/stdlib', ['seed=5'])
  assert json.loads(out) == json.loads(experiment.to_json(config)) and json.loads(out)['seed'] == 5


def test_show_of_a_run_says_what_it_is_made_of(command, tmp_path):
  config, _ = experiment.load('lm/stdlib:smoke')
  run = rundir.claim(tmp_path / 'run', config)
  code, out, _ = command('show', run)
  assert code == 0 and out.splitlines()[0].startswith(str(run)) and 'made by' not in out
  parent = dict(run='/runs/before', step=7, config=None, checkpoint='abcdefghij', made=None)
  found = dict(facts={}, lineage=[dict(method='prune', options=dict(keep=0.5), parents=[parent])])
  (run / 'ancestry.json').write_text(json.dumps(found))
  lines = command('show', run, '--config.train.steps=77')[1].splitlines()
  assert '  steps           77' in lines and lines[-3:] == [
      'made by prune (keep=0.5) of', '  /runs/before, step 7 (checkpoint abcdefgh)',
      '    trained from nothing']


def test_diff_shows_fields_with_both_values(command):
  code, out, _ = command('diff', 'lm/stdlib', 'lm/stdlib:smoke')
  rows = [line.split('  ') for line in out.splitlines()[1:]]
  expected = experiment.diff(experiment.load('lm/stdlib')[0], experiment.load('lm/stdlib:smoke')[0])
  assert code == 0 and [row[0].strip() for row in rows] == list(expected) != []
  assert command('diff', 'lm/stdlib', 'lm/stdlib')[1] == 'lm/stdlib and lm/stdlib are equal\n'


def test_sharding_shows_every_array_and_needs_no_devices(command, monkeypatch):
  monkeypatch.setattr(jax, 'devices', lambda *a: pytest.fail('asked for devices'))
  code, out, _ = command('show', NAME, '--sharding', '--mesh', '4x8x2')
  lines = out.splitlines()
  assert code == 0 and 'mesh data 4 x expert 8 x model 2: 64 devices' in lines
  wi = next(line.split() for line in lines if 'experts/wi' in line)
  assert wi[1:3] == ['layers,expert,expert_embed,expert_mlp', '-,expert,-,model']
  assert int(wi[-2].replace(',', '')) == 16 * int(wi[-1].replace(',', ''))
  assert lines[-1].split()[0] == 'all'


@pytest.mark.parametrize('more, words', [
    (['--sharding'], ['--mesh']),
    (['--mesh', '2x2x2'], ['nearest: --sharding --mesh 2x2x2']),
    (['--sharding', '--mesh', '2x2'], ['--mesh 2x2', 'data x expert x model', 'nearest: 2x2x1']),
    (['--sharding', '--mesh', '1x3x1'],
     ['mesh.expert=3: experts', 'not divisible by 3', 'nearest: mesh.expert=2']),
    (['--sharding', '--mesh', '1x7x1'], ['mesh.expert=7: experts', 'nearest: mesh.expert=4']),
    (['--sharding', '--mesh', '1x64'], ['--mesh 1x64: ', 'nearest: 1x64x1']),
    (['--sharding', '--mesh', '0,2,2,2'], ['nearest: 1x2x2']),
    (['--sharding', '--mesh', 'axb'], ['nearest: 8x1x1']),
    (['--sharding', '--mesh', '1x1x1', '--config.mesh.rules=fsdb'], ['mesh.rules', 'nearest: fsdp']),
])
def test_mistakes_in_sharding(mistake, more, words):
  line = mistake('show', NAME, *more)
  assert all(word in line for word in words), line


@pytest.fixture
def run(tmp_path):
  rundir.claim(tmp_path, experiment.load(NAME, ['seed=3'])[0])
  return tmp_path


def test_a_run_is_shown_and_compared_as_an_experiment(command, run):
  config, _ = experiment.load(NAME, ['seed=3', 'train.steps=8'])
  code, out, _ = command('show', run, '--json', '--config.train.steps=8')
  assert code == 0 and json.loads(out) == json.loads(experiment.to_json(config))
  assert command('show', run)[1].startswith(f'{run}  (run id ')
  code, out, _ = command('diff', run, NAME)
  assert code == 0 and [line.split() for line in out.splitlines()[1:]] == [['seed', '3', '0']]


def test_a_folder_that_is_no_run_is_told_apart_from_a_name(mistake, run):
  known = run / 'inside' / 'config.json'
  known.parent.mkdir()
  known.write_text((run / 'config.json').read_text())
  (run / 'config.json').unlink()
  for words in (['show', run], ['diff', NAME, run], ['train', run]):
    line = mistake(*words)
    assert f'{run} is a folder, but no run directory' in line, line
    assert line.endswith(f'nearest: {run}/inside'), line


def test_two_commands_say_the_same_of_a_run_that_is_not_there(mistake, run):
  said = f"no run directory and no experiment is called '{run}x'; nearest: {run}"
  assert all(said in mistake(*words) for words in (['diff', run, f'{run}x'], ['eval', f'{run}x']))


def test_defaults_are_dim_on_a_terminal(command, monkeypatch):
  assert show.DIM not in command('show', NAME)[1]
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
  monkeypatch.delenv('NO_COLOR', raising=False)
  lines = command('show', NAME)[1].splitlines()
  kept = next(line for line in lines if 'min_capacity' in line)
  said = next(line for line in lines if 'num_experts' in line)
  assert kept.startswith(show.DIM) and kept.endswith(show.PLAIN) and show.DIM not in said


def test_a_new_run_like_another(mistake, command, monkeypatch, run, tmp_path):
  trained = []
  monkeypatch.setattr(loop, 'train', lambda cfg, workdir, name: trained.append((cfg, workdir)))
  assert command('train', '--like', run, '--workdir', tmp_path / 'new', '--config.seed=5')[0] == 0
  assert command('train', run, '--config.train.steps=900')[0] == 0
  (new, where), (same, there) = trained
  assert new.seed == 5 and where == str(tmp_path / 'new')
  assert (same.seed, same.train.steps, there) == (3, 900, str(run))                  # this one goes on
  assert experiment.diff(new, rundir.load(run)) == {'seed': (5, 3)}
  made = dict(facts={}, lineage=[dict(method='prune', options={}, parents=[])])
  assert 'begins from nothing' not in command('train', '--like', run, '--workdir', tmp_path / 'new')[2]
  (run / 'ancestry.json').write_text(json.dumps(made))
  said = command('train', '--like', run, '--workdir', tmp_path / 'new')[2]
  assert f'{run} was made by prune and {tmp_path / "new"} begins from nothing' in said
  assert said.count('\n') == 1
  (run / 'ancestry.json').unlink()
  assert '--workdir' in mistake('train', '--like', run)
  assert f'nearest: --like {run} --workdir {tmp_path}/other' in mistake('train', run, '--workdir',
                                                                      tmp_path / 'other')
  assert 'is not a run directory' in mistake('train', '--like', tmp_path / 'no', '--workdir', 'x')
  assert '--like RUN' in mistake('train') and '--like RUN' in mistake('train', NAME, '--like', run)
