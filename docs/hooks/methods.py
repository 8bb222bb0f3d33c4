"""The page of a method, made of its short file and of what the repository says of it elsewhere.

A short file of docs/methods has a title, a paragraph, and the items Source, Files and Configurations. Added
here are commands, what the configurations say, the facts of the paper, results, docstrings and tests.
"""

import ast
import functools
import json
import pathlib
import re

import repository

FOLDER = repository.ROOT / 'docs' / 'methods'
INDEX = 'README.md'
ITEM = re.compile(r'^- (Source|Files|Configurations): (.*?)(?=^- |\Z)', re.DOTALL | re.MULTILINE)
# The first folder of a method's first file -> the heading of its table.
KINDS = {'routers': 'Routers', 'layers': 'Layers', 'attention': 'Attention', 'parts': 'Blocks and adapters',
         'experts': 'Experts', 'models': 'Models', 'mixers': 'Several tasks', 'heads': 'Heads',
         'surgery': 'Surgeries on trained models', 'analysis': 'Serving and analysis',
         'decode': 'Decoding', 'data': 'Data and tasks'}


class Method:
  """A method as its short file has it.

  name, title, text:      of the file, its heading, its paragraph.
  source, configurations: Markdown of these items.
  files:                  paths in the repository.
  """

  def __init__(self, path):
    written = path.read_text(encoding='utf-8')
    items = {label: ' '.join(value.split()) for label, value in ITEM.findall(written)}
    self.name = path.stem
    self.title = re.search(r'^# (.*)$', written, re.MULTILINE)[1]
    self.text = ' '.join(written.split('\n\n')[1].split())
    self.source = items.get('Source', '')
    self.files = re.findall(r'\]\(\.\./\.\./([^)]+)\)', items.get('Files', ''))
    self.configurations = items.get('Configurations', '')

  @property
  def kind(self):
    """The heading under which the method stands."""
    folder = pathlib.PurePosixPath(self.files[0]).parts[1]
    return KINDS.get(folder, 'Others')

  @property
  def experiments(self):
    """Names of configurations, with their arguments."""
    named = re.findall(r'`([a-z_0-9]+/[a-z_0-9]+(?::[^`]*)?)`', self.configurations)
    return [name for name in named if (repository.ROOT / 'configs' / f'{name.partition(":")[0]}.py').exists()]

  @property
  def papers(self):
    """The paper.py of its folders of configurations, as paths in the repository."""
    folders = dict.fromkeys([*(name.partition('/')[0] for name in self.experiments), self.name])
    found = [f'configs/{folder}/paper.py' for folder in folders]
    return [path for path in found if (repository.ROOT / path).exists()]


@functools.cache
def known():
  """Returns the list of all Methods, by title."""
  files = [path for path in FOLDER.glob('*.md') if path.name != INDEX]
  return sorted(map(Method, files), key=lambda method: method.title.lower())


@functools.cache
def homes():
  """Returns dict Python file -> name of the method on whose page its docstrings stand."""
  found = {method.files[0]: method.name for method in reversed(known())}
  for method in known():
    for file in method.files:
      found.setdefault(file, method.name)
  return {file: name for file, name in found.items() if file.startswith('stmoe/') and file.endswith('.py')}


def index():
  """Returns the tables of all methods as Markdown, links as in docs/methods/README.md."""
  parts = [f'{len(known())} methods, by where their first file lies.']
  for kind in [*KINDS.values(), 'Others']:
    some = [method for method in known() if method.kind == kind]
    if some:
      rows = [f'| [{one.title}]({one.name}.md) | {one.text} | {one.source} |' for one in some]
      parts += [f'## {kind}', '\n'.join(['| method | | source |', '|---|---|---|', *rows])]
  return '\n\n'.join(parts) + '\n'


def page(name):
  """Returns the part of a method's page that is made, as Markdown with links as in docs/methods."""
  method = next(one for one in known() if one.name == name)
  parts = [_commands(method), _configurations(method), _papers(method), _results(method), _code(method),
           _tests(method)]
  return '\n\n'.join(filter(None, parts)) + '\n'


def _commands(method):
  if not method.experiments:
    return ''
  first = method.experiments[0]
  small = first + (',' if ':' in first else ':') + 'smoke'
  return (f'## Run it\n\n```sh\nstmoe show {first}\nstmoe train {small} --workdir runs/{method.name}'
          '    # the same code in tiny shapes; without smoke as the paper has it\n```')


def _configurations(method):
  names = dict.fromkeys(name.partition(':')[0] for name in method.experiments)
  rows = [f'| {_link(f"configs/{name}.py", name)} | {repository.says(f"configs/{name}.py")} |'
          for name in names]
  return '\n'.join(['## Configurations', '', '| name | |', '|---|---|', *rows]) if rows else ''


def _papers(method):
  parts = []
  for path in method.papers:
    text = (repository.ROOT / path).read_text(encoding='utf-8')
    said = ast.get_docstring(ast.parse(text)) or ''
    code = '\n'.join(f'    {line}' for line in text.rstrip().split('\n'))
    parts.append(f'{said}\n\n??? note "[{path}](../../{path}): sizes, optimizers, published results"\n\n'
                 f'    ~~~python\n{code}\n    ~~~')
  return '\n\n'.join(['## What the paper says', *parts]) if parts else ''


def _code(method):
  parts = ['## Code']
  for file in method.files:
    module = file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
    home = homes().get(file)
    if home == method.name:
      parts += [_link(file), f'::: {module}']
    else:
      where = f', on the page [{home}]({home}.md)' if home else ''
      parts.append(f'{_link(file)}: {repository.says(file)}{where}')
  return '\n\n'.join(parts)


def _tests(method):
  stems = dict.fromkeys([method.name, *(pathlib.PurePosixPath(file).stem for file in method.files)])
  found = [path.relative_to(repository.ROOT).as_posix() for stem in stems
           for pattern in (f'oracles/check_{stem}*.py', f'*/test_{stem}.py')
           for path in sorted((repository.ROOT / 'tests').glob(pattern))]
  rows = [f'- {_link(path)}: {repository.says(path)}' for path in dict.fromkeys(found)]
  return '\n'.join(['## Tests', '', *rows]) if rows else ''


def _results(method):
  """Verdicts of the questions whose pages cite the method's papers, and the method's rows of the zoo."""
  parts = []
  for page in sorted((repository.ROOT / 'experiments').glob('*/README.md')):
    text = page.read_text(encoding='utf-8')
    if not any(paper in text for paper in re.findall(r'arXiv:\d{4}\.\d{4,5}', method.source)):
      continue
    title = text.partition('\n')[0].lstrip('# ')
    parts.append(_link(f'experiments/{page.parent.name}/README.md', title) + _verdicts(page.parent, method))
  parts += _zoo(method)
  return '\n\n'.join(['## Results here', *parts]) if parts else ''


def _verdicts(folder, method):
  """A table of the verdicts of a question whose claims name the method; '' where none does."""
  file = folder / 'results' / 'verdict.json'
  if not file.exists():
    return ''
  called = {method.title.lower(), method.name.replace('_', ' ')}
  named = [one for one in json.loads(file.read_text(encoding='utf-8'))['verdicts']
           if any(name in f'{one["claim"]} {one["claim"].replace("-", " ")}'.lower() for name in called)]
  rows = [f'| {one["claim"]} | **{one["answer"]}** | {_number(one["effect"])} | {_number(one["low"])} to '
          f'{_number(one["high"])} |' for one in named]
  head = '\n\n| claim | verdict | effect | 95 % interval |\n|---|---|---|---|\n'
  return head + '\n'.join(rows) if rows else ''


def _zoo(method):
  """Its rows of experiments/zoo, under the names by which configs/*/compared.py compares it."""
  names = set()
  for folder in dict.fromkeys([method.name, *(name.partition('/')[0] for name in method.experiments)]):
    file = repository.ROOT / 'configs' / folder / 'compared.py'
    if file.exists():
      names |= _compared(file)
  names &= {method.name, *(pathlib.PurePosixPath(file).stem for file in method.files)}
  lines = (repository.ROOT / 'experiments' / 'zoo' / 'README.md').read_text(encoding='utf-8').split('\n')
  rows = [line for line in lines if line.startswith('| ') and line.split('|')[1].strip() in names]
  if not rows:
    return []
  head = next(i for i, line in enumerate(lines) if line.startswith('| method |'))
  return ['All methods at equal active FLOPs ([zoo](../../experiments/zoo/README.md)):',
          '\n'.join([*lines[head:head + 2], *rows])]


def _compared(file):
  """The keys of METHODS in a compared.py."""
  tree = ast.parse(file.read_text(encoding='utf-8'))
  return {keyword.arg for node in tree.body
          if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'METHODS'
          for keyword in getattr(node.value, 'keywords', ())}


def _link(path, text=''):
  """A link of docs/methods to a file of the repository."""
  return f'[{text or path}](../../{path})'


def _number(value):
  return '' if value is None else f'{value:+.4g}'
