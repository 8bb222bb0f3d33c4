"""Plugins of runs, of installed packages and of commands."""

import importlib.metadata
import json
import os
import subprocess
import sys

import ml_collections
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import plugins
from stmoe.cli import main
from stmoe.runs import plugged
from tests.docs import pages
from tests.plugins import files


def test_a_run_names_the_plugin_that_it_was_made_with(tmp_path):
  path = files.write(tmp_path, files.SOURCES['router'])
  known = dict(kind='router', name='mine', file=str(path))
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=[known])))
  config = ml_collections.ConfigDict(dict(router=dict(name='mine')))
  for asked in (plugged.check, plugged.present):
    with pytest.raises(errors.UserError, match=f"router 'mine' of a file of its own; .* --plugin {path}"):
      asked(tmp_path, config)
  plugged.check(tmp_path, ml_collections.ConfigDict(dict(router=dict(name='switch'))))   # does not need it
  plugins.add(path)
  plugged.check(tmp_path, config)


def test_a_run_names_all_the_files_that_it_was_made_with(tmp_path):
  known = [dict(kind=kind, name=name, file=f'/a/{name}.py')
           for kind, name in (('router', 'mine'), ('optimizer', 'held'), ('virtual', 'other'))]
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=known)))
  config = ml_collections.ConfigDict(dict(router=dict(name='mine'), optimizer=dict(name='held'),
                                          virtual=('zero', dict(name='other'))))
  said = ("has the router 'mine' and the optimizer 'held' and the virtual 'other' of files of its own; "
          'nearest: --plugin /a/mine.py --plugin /a/held.py --plugin /a/other.py$')
  with pytest.raises(errors.UserError, match=said):
    plugged.present(tmp_path, config)


def test_a_run_names_what_its_files_import(tmp_path):
  inner = files.write(tmp_path, files.SOURCES['router'])
  user = 'from stmoe.routers import mine\nfrom stmoe.routers import switch\n' + files.SOURCES['layer']
  outer = files.write(tmp_path, user.replace('Mine', 'Other'), 'other')
  plugins.add(inner)
  plugins.add(outer)
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=plugged.facts())))
  config = ml_collections.ConfigDict(dict(layer=dict(name='other')))
  plugged.check(tmp_path, config)
  plugins.add(files.write(tmp_path, files.SOURCES['router'] + '# another\n'))
  said = f'note: {inner} has changed since {tmp_path} was trained with it'
  assert plugged.changed(tmp_path, config) == [said]
  os.environ[plugins.VARIABLE] = str(outer)
  with pytest.raises(errors.UserError, match=f"the router 'mine' of a file of its own; .* --plugin {inner}$"):
    plugged.check(tmp_path, config)


def test_a_file_that_has_changed_since_a_run_was_trained_is_said_once(tmp_path, capsys):
  path = files.write(tmp_path, files.SOURCES['router'])
  config = ml_collections.ConfigDict(dict(router=dict(name='mine')))
  plugins.add(path)
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=plugged.facts())))
  plugged.check(tmp_path, config)
  assert not capsys.readouterr().err
  plugins.add(files.write(tmp_path, files.SOURCES['router'] + '# another\n'))
  assert not plugged.changed(tmp_path, ml_collections.ConfigDict(dict(router=dict(name='switch'))))
  for _ in range(2):
    plugged.check(tmp_path, config)
  assert capsys.readouterr().err == f'note: {path} has changed since {tmp_path} was trained with it\n'


def test_a_command_that_is_proposed_names_the_files(tmp_path):
  (tmp_path / 'a folder').mkdir()
  path = files.write(tmp_path / 'a folder', files.SOURCES['router'])
  assert plugins.command('show', 'my run') == "stmoe show 'my run'"
  plugins.add(path)
  assert plugins.command('show', 'run') == f"stmoe show run --plugin '{path}'"


@pytest.fixture
def entries(monkeypatch, tmp_path):
  """Installs the modules of a folder under the given entries, as a package's metadata name them."""
  def install(*modules):
    found = [importlib.metadata.EntryPoint(module, module, plugins.GROUP) for module in modules]
    monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group: {plugins.GROUP: found}[group])
    plugins._installed.cache_clear()
    plugins._known.cache_clear()
  monkeypatch.syspath_prepend(tmp_path)
  yield install
  monkeypatch.undo()
  plugins._installed.cache_clear()
  plugins._known.cache_clear()


def test_installed_packages_name_plugins_and_one_that_is_none_hinders_nobody(entries, tmp_path, capsys):
  files.write(tmp_path, files.SOURCES['router'])
  files.write(tmp_path, 'x = 1\n', 'nothing_here')
  entries('mine', 'nothing_here', 'absent_module')
  assert 'mine' in lookup.available('router') and lookup.module('router', 'mine').__name__ == 'mine'
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2 and all(line.startswith('note: the plugin ') for line in said)
  assert 'there is no module absent_module' in said[1]


def test_every_command_takes_plugins_and_so_do_the_processes_it_starts(tmp_path, capsys):
  path = files.write(tmp_path, files.SOURCES['router'])
  words = ['show', 'lm/quickstart:method=switch', '--plugin', str(path), '--config.blocks.m.router.name=mine']
  assert main.main(words) == 0
  assert "'mine'" in capsys.readouterr().out
  code = 'from stmoe import lookup; print("mine" in lookup.available("router"))'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        check=True).stdout.strip() == 'True'
  assert main.main(['show', 'lm/quickstart', '--plugin']) == 2
  assert '--plugin needs a file' in capsys.readouterr().err
  assert main.main(['--help']) == 0
  assert 'Plugins and configurations are code' in capsys.readouterr().out


@pytest.mark.slow
def test_the_model_of_the_page_trains_with_all_its_files(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for block in pages.blocks(pages.ROOT / 'docs' / 'plugins.md'):
    if block.note('file'):
      (tmp_path / block.note('file')).write_text(block.text, encoding='utf-8')
  for file in tmp_path.glob('*.py'):
    if file.stem != 'calm_lm':
      plugins.add(file)
  few = ['--config.train.steps=2', '--config.eval.batches=1', '--config.eval.every=2']
  assert main.main(['train', 'calm_lm.py:smoke', '--workdir', 'run', *few]) == 0, capsys.readouterr().err
  (tmp_path / 'prompts.jsonl').write_text('{"inputs": "import ", "given/domain": 1}\n')
  assert main.main(['infer', 'run', 'prompts.jsonl', '--length', '4']) == 0, capsys.readouterr().err
  (tmp_path / 'prompts.jsonl').write_text('{"inputs": "import "}\n')
  assert main.main(['infer', 'run', 'prompts.jsonl', '--length', '4']) == 2
  assert "nothing is given as 'domain'" in capsys.readouterr().err
