"""stmoe list, its words and kinds; stmoe completion; hints and help of fields."""

import shutil
import subprocess

import pytest

from stmoe import experiment
from stmoe import lookup
from stmoe.cli import completion
from stmoe.cli import list as listing
from stmoe.cli import main
from stmoe.plugins import kinds


def names(out):
  return [line.split()[0] for line in out.splitlines()]


def test_words_are_searched_in_names_and_lines(command):
  found = experiment.available()
  out = command('list', 'LM', 'text')[1]
  assert names(out) == [name for name, line in found.items()
                        if all(word in f'{name} {line}'.lower() for word in ('lm', 'text'))]
  assert 'lm/text' in names(out)
  described = names(command('list', 'capacity', 'factors')[1])
  assert described and not any('factors' in name for name in described)


def test_an_experiment_shows_its_arguments(command):
  code, out, _ = command('list', 'lm/quickstart')
  assert code == 0 and out.startswith('lm/quickstart\n\nThe first comparison')
  assert "  method   str, default 'switch'\n  experts  int, default 8\n" in out
  assert '  smoke    switched on by its name' in out and 'lm/quickstart:smoke,method=switch' in out


def test_every_experiment_tells_its_arguments():
  assert [name for name in experiment.available() if 'smoke' not in experiment.arguments(name)] == []


@pytest.mark.parametrize('plural', listing.KINDS)
def test_kinds_have_a_line_for_each_module(command, plural):
  code, out, _ = command('list', plural)
  assert code == 0 and all(line.count('  ') for line in out.splitlines()), out
  if plural == listing.TASKS:
    assert {'stdlib', 'boolq', 'text'} <= set(names(out))
  else:
    kind = listing.KINDS[plural]
    assert set(names(out)) == {*lookup.available(kind), *lookup.wrappers(kind)}


def test_every_kind_of_a_plugin_is_listed():
  assert set(listing.KINDS.values()) == set(kinds.KINDS)


def test_words_after_a_kind_choose(command):
  assert names(command('list', 'routers', 'sigmoid', 'deepseek')[1]) == ['deepseek_v3']
  code, _, err = command('list', 'routers', 'swich')
  assert code == 2 and "no routers has 'swich' in its name or line; nearest: switch" in err


@pytest.mark.parametrize('word', ['--train.steps=3', 'train.steps=3', 'config.train.steps=3',
                                  '--train.steps'])
def test_a_field_without_config_is_told_how_it_is_written(command, word):
  code, _, err = command('train', 'lm/quickstart', word)
  written = word.removeprefix('--').removeprefix('config.')
  assert code == 2 and err.rstrip().endswith(f'nearest: --config.{written}')


def test_help_of_train_lists_the_fields(command):
  code, out, _ = command('train', 'lm/quickstart:smoke', '--help', '--config.train.steps=7')
  assert code == 0 and out.startswith('usage: stmoe train')
  assert 'blocks.m.router  switch: Switch Transformer' in out and '  steps = 7\n' in out
  assert 'stmoe train NAME --help also lists' in command('train', '--help')[1]
  assert command('train', 'lm/quikstart', '--help')[0] == 2


def test_show_explains_fields(command):
  out = command('show', 'lm/quickstart', '--fields')[1]
  assert '  capacity_factor = (1.25, 2.0)\n      (train, eval) slots per token' in out
  assert '--fields goes without' in command('show', 'lm/quickstart', '--fields', '--json')[2]


BASH = 'complete() { :; }; source %s; COMP_WORDS=(stmoe %s); COMP_CWORD=%d; _stmoe; echo "${COMPREPLY[@]}"'
ZSH = ('compdef() { }; _files() { }; compadd() { print -r -- ${(P)2} }; source %s; words=(stmoe %s); '
       'CURRENT=%d; _stmoe')
FISH = "source %s; complete -C 'stmoe %s' # %d"
SHELLS = {'bash': (BASH, 0, ['-c']), 'zsh': (ZSH, 1, ['-f', '-c']), 'fish': (FISH, 0, ['-c'])}


@pytest.mark.parametrize('shell', SHELLS)
@pytest.mark.parametrize('typed, wanted', [('tr', 'train'), ('show lm/qu', 'lm/quickstart'),
                                           ('train --workd', '--workdir')])
def test_shells_complete(command, tmp_path, shell, typed, wanted):
  if shutil.which(shell) is None:
    pytest.skip(f'there is no {shell}')
  form, first, options = SHELLS[shell]
  (tmp_path / 'script').write_text(command('completion', shell)[1])
  line = form % (tmp_path / 'script', typed, len(typed.split()) + first)
  found = subprocess.run([shell, *options, line], capture_output=True, text=True, check=True).stdout.split()
  assert wanted in found


def test_scripts_name_all_commands_and_only_experiments_that_exist():
  for shell in SHELLS:
    text = completion.script(shell)
    assert all(name in text for name in main.commands()) and 'lm/quickstart' in text
  assert set(completion.EXPERIMENTS) <= set(main.commands())
