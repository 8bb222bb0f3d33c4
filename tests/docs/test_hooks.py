"""What the site makes: links that move, pages of methods, docstrings as Markdown."""

import importlib.util
import pathlib
import re
import sys

import pytest

from stmoe import lookup
from tests.docs import pages

HOOKS = pages.ROOT / 'docs' / 'hooks'


@pytest.fixture(scope='module')
def hook():
  """A function from the name of a hook's file to its module, as MkDocs imports it."""
  def imported(name):
    spec = importlib.util.spec_from_file_location(name, HOOKS / f'{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(HOOKS))
    before = dict(sys.modules)
    yield imported
    for name in {path.stem for path in HOOKS.glob('*.py')} - set(before):
      sys.modules.pop(name, None)


def test_links_move_with_their_page_and_code_stays(hook):
  linked = hook('repository').linked
  text = ('[a](../stmoe/routers/switch.py) [b](start.md#x) [c](https://x.org) [d](#at) `[e](../README.md)`\n'
          '```python\nf[0](../README.md)\n```\n[g](../experiments/depth/README.md) [h](gone.md)\n')
  moved, targets = linked(text, 'docs/page.md', 'page.md')
  assert moved == text.replace('../stmoe/routers/switch.py', 'source/stmoe/routers/switch.py.md').replace(
      '../experiments/depth/README.md', 'experiments/depth.md')
  assert targets == ['stmoe/routers/switch.py', 'docs/start.md', 'experiments/depth/README.md']
  assert linked('[a](docs/start.md)', 'README.md', 'index.md')[0] == '[a](start.md)'
  assert linked('[a](../docs/start.md)', 'x/y.md', 'reference/y.md')[0] == '[a](../start.md)'


def test_files_and_folders_are_pages(hook):
  repository = hook('repository')
  assert 'class Switch' in repository.shown('stmoe/routers/switch.py')
  assert '| [switch.py](routers/switch.py) | Switch' in repository.shown('stmoe/routers')
  assert repository.place('docs/start.md') == 'start.md'
  assert repository.place('docs/hooks/made.py') == 'source/docs/hooks/made.py.md'
  assert repository.place('experiments/quickstart/gap.png') == 'files/experiments/quickstart/gap.png'
  assert repository.shown('experiments/quickstart/gap.png') is None and repository.place('nowhere') is None


def test_every_method_is_a_short_file_whose_code_exists(hook):
  methods = hook('methods').known()
  assert len(methods) >= 90
  for method in methods:
    assert method.title and method.text.endswith('.') and method.source, method.name
    assert method.files and all((pages.ROOT / file).exists() for file in method.files), method.name
  titles = [method.title for method in methods]
  assert len(set(titles)) == len(titles)


def test_every_router_stands_on_the_page_of_a_method(hook):
  folder = pages.ROOT / 'docs' / 'methods'
  written = '\n'.join(path.read_text(encoding='utf-8') for path in folder.glob('*.md'))
  missing = [name for name in lookup.available('router') if f'stmoe/routers/{name}.py' not in written]
  assert missing == []


def test_the_page_of_a_method_has_what_the_repository_says(hook):
  text = hook('methods').page('adamoe')
  for part in ('stmoe train adamoe/mixtral:smoke', '[adamoe/mixtral](../../configs/adamoe/mixtral.py)',
               '(../../configs/adamoe/paper.py): sizes', '::: stmoe.routers.adamoe',
               '(../../tests/oracles/check_adamoe.py)', '| AdaMoE, two of four choices real, better'):
    assert part in text, part
  assert re.search(r'^\| switch \| 2\.\d\d\d ± ', hook('methods').page('switch'), re.MULTILINE)


@pytest.mark.slow
def test_a_module_has_its_docstrings_on_one_page(hook):
  module = hook('methods')
  named = lambda text: re.findall(r'^::: (\S+)$', text, re.MULTILINE)
  made = [name for one in module.known() for name in named(module.page(one.name))]
  assert len(made) > 90 and len(set(made)) == len(made)
  for place, text in hook('reference').pages().items():
    assert not set(named(text)) & set(made), place
    made += named(text)
  assert len(set(made)) == len(made)


@pytest.mark.parametrize('kind, name', [
    ('optimizer', 'adafactor'), ('schedule', 'cosine'), ('around', 'parallel'), ('router', 'replay')])
def test_modules_and_functions_of_a_kind_lead_to_their_files(hook, kind, name):
  text = hook('reference')._kind(kind, 'x')
  [link] = re.findall(rf'^\| \[{name}\]\(\.\./(\S+)\)', text, re.MULTILINE)
  assert (pages.ROOT / link).is_file()
  named = re.findall(r'^::: (\S+)$', text, re.MULTILINE)
  assert len(set(named)) == len(named)
  assert all((pages.ROOT / f'{module.replace(".", "/")}.py').is_file() for module in named)


def test_docstrings_are_markdown(hook):
  text = hook('docstrings').notes('x.\n\n>>> f([1])\n[1.0]\n\nDiffers: a\n  b.\nfor [B,K] [D,F], `a[0][1]`')
  assert '```pycon\n>>> f([1])\n[1.0]\n```' in text and '**Differs**: a b.' in text
  listed = hook('docstrings').notes('Edges.\n\ntoken: i32[G]\n  of S.\nweight, id: f32.\n\nSo:\n  1. One.')
  assert '\n- `token`: i32[G] of S.\n- `weight, id`: f32.\n' in listed and 'So:\n\n  1. One.' in listed
  assert '[B,K] \\[D,F]' in text and '`a[0][1]`' in text


def test_notebooks_are_pages(hook):
  file = pathlib.Path(pages.ROOT / 'notebooks' / '01_router_tour.ipynb')
  text, pictures = hook('cells').page(file.read_text(encoding='utf-8'), 'tour')
  assert text.startswith('# ') and '```python\n' in text and '![figure 1](tour_0.png)' in text
  assert '$' not in re.sub('```.*?```', '', text, flags=re.DOTALL)    # no formulas that a program would set
  assert pictures and all(name.startswith('tour_') for name in pictures)
