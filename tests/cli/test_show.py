"""stmoe list, show and diff print what the experiments hold."""

import json

from stmoe import experiment


def test_list_shows_names_and_lines_and_filters(command):
  code, out, _ = command('list')
  assert code == 0
  found = experiment.available()
  assert [line.split()[0] for line in out.splitlines()] == list(found)
  assert all(text in out for text in found.values())
  filtered = [line.split()[0] for line in command('list', 'lm', 'text')[1].splitlines()]
  assert filtered == [name for name in found if 'lm' in name and 'text' in name] != []


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


def test_diff_shows_fields_with_both_values(command):
  code, out, _ = command('diff', 'lm/stdlib', 'lm/stdlib:smoke')
  rows = [line.split('  ') for line in out.splitlines()[1:]]
  expected = experiment.diff(experiment.load('lm/stdlib')[0], experiment.load('lm/stdlib:smoke')[0])
  assert code == 0 and [row[0].strip() for row in rows] == list(expected) != []
  assert command('diff', 'lm/stdlib', 'lm/stdlib')[1] == 'lm/stdlib and lm/stdlib are equal\n'
