"""Blocks of code on pages: each is run, or says why not; commands exist, with their options and fields."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from stmoe import experiment
from stmoe.cli import main
from stmoe.runs import directory
from tests import xla
from tests.docs import given
from tests.docs import pages

HERE = pathlib.Path(__file__).parent
LANGUAGES = {'sh', 'python', 'text', ''}
TRAINS = {'train', 'compare', 'finetune'}
DRAWS = {'train', 'compare', 'upcycle'}      # have the model that their experiment says, not that of a start
FEW = ['--config.train.steps=2', '--config.eval.batches=1']
OTHERS = sorted((pages.ROOT / 'experiments').rglob('README.md')) + [pages.ROOT / 'notebooks' / 'README.md']


def blocks(*languages):
  """Returns all blocks of the pages in one of these languages."""
  return [block for page in pages.PAGES for block in pages.blocks(page) if block.language in languages]


def test_every_block_is_run_or_says_why_not():
  assert len(blocks('sh')) > 30
  for block in blocks(*LANGUAGES):
    typed = re.search(r'^(stmoe|python|pip) ', block.text, re.MULTILINE)
    assert not typed or block.language == 'sh', str(block)
    if block.language == 'sh' and not block.note('not run'):
      for words in block.commands:
        assert words[0] == 'stmoe' or words[:2] == ['python', '-m'], f'{block}: {words}'
  for page in pages.PAGES:
    unknown = {block.language for block in pages.blocks(page)} - LANGUAGES
    assert not unknown, f'{page.name}: {unknown}'


def parsed(words):
  """Returns (arguments, overrides) of the words of a command; raises UserError as the command would."""
  command = importlib.import_module(f'stmoe.cli.{words[1]}')
  parser = main.Parser(prog=words[1], allow_abbrev=False)
  command.add_arguments(parser)
  plain, overrides = main.split_overrides(words[2:])
  plain = [word for word, before in zip(plain, ['', *plain]) if '--plugin' not in (word, before)]
  return parser.parse_args(plain), overrides


def commands():
  """Yields (where, words) of every command `stmoe ...` on a page, also of those that no test runs."""
  for page in [*pages.PAGES, *OTHERS]:
    for block in pages.blocks(page):
      if block.language == 'sh':
        for words in block.commands:
          if words[0] == 'stmoe':
            yield f'{block}: {" ".join(words)}', [word for word in words if not word.startswith('$')]


def test_commands_exist_with_their_options_and_fields():
  known = set(experiment.available())
  seen = 0
  for where, words in commands():
    try:
      _, overrides = parsed(words)
      named = [word for word in words[2:] if word.partition(':')[0] in known and not word.startswith('-')]
      if words[1] in TRAINS | {'show', 'eval'} and named and '--plugin' not in words:
        directory.named(named[-1], overrides)
        seen += 1
    except (Exception, SystemExit) as error:
      raise AssertionError(f'{where}: {error}') from None
  assert seen > 15


def small(words):
  """Returns the words of a command that does the same in tiny shapes and two steps."""
  known = set(experiment.available()) if words[1] in DRAWS else ()
  words = [_smoke(word) if word.partition(':')[0] in known else word for word in words]
  return words + FEW if words[1] in TRAINS else words


def _smoke(word):
  return word if re.search(r'[:,]smoke', word) else word + (',' if ':' in word else ':') + 'smoke'


def test_commands_are_run_small():
  assert small(['stmoe', 'train', 'lm/quickstart:method=hash']) == [
      'stmoe', 'train', 'lm/quickstart:method=hash,smoke', *FEW]
  words = ['stmoe', 'finetune', 'runs/a', 'lora/tuning']
  assert small(words) == [*words, *FEW]
  assert small(['stmoe', 'show', 'lm/quickstart']) == ['stmoe', 'show', 'lm/quickstart']


def steps(page, folder, runs):
  """Returns the steps of a page for driver.py; puts what the page is given into `folder`."""
  found = []
  for block in pages.blocks(page):
    for name in block.note('given').split():
      given.put(name, folder, runs)
    if block.note('file'):
      (folder / block.note('file')).write_text(block.text, encoding='utf-8')
    elif block.language == 'sh' and not block.note('not run'):
      found += [['command', small(words)] for words in block.commands]
    elif block.language == 'python' and not block.note('not run'):
      found.append(['python', block.text])
  return found


def drive(found, folder):
  """Runs steps in `folder` in a process of its own; raises AssertionError with its words where one fails."""
  file = folder.parent / f'{folder.name}.json'
  file.write_text(json.dumps(found), encoding='utf-8')
  environment = os.environ | dict(
      XLA_FLAGS=xla.flags(devices=1), STMOE_CACHE_DIR=str(folder.parent / 'cache'), STMOE_PLUGINS='',
      PYTHONPATH=str(pages.ROOT))
  done = subprocess.run([sys.executable, str(HERE / 'driver.py'), str(file)], cwd=folder, env=environment,
                        capture_output=True, text=True, check=False, timeout=1800)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with two tiny trained runs of quickstart's models."""
  folder = tmp_path_factory.mktemp('trained')
  tiny = ['--config.data.vocab=bytes', '--config.model.vocab_size=384', '--config.checkpoint.every=1', *FEW]
  drive([['command', ['stmoe', 'train', f'lm/quickstart:method={name},smoke', '--workdir', name, *tiny]]
         for name in ('switch', 'dense')], folder)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize('page', pages.PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_a_page_runs_from_top_to_bottom(page, runs, tmp_path):
  folder = tmp_path / 'here'
  folder.mkdir()
  if found := steps(page, folder, runs):
    drive(found, folder)
