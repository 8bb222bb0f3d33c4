"""Files of the repository as pages of the site, so that no link has to leave the site."""

import ast
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Pages that lie elsewhere in the repository -> where they are in the site.
ELSEWHERE = {'README.md': 'index.md', 'CONTRIBUTING.md': 'CONTRIBUTING.md', 'SECURITY.md': 'SECURITY.md',
             'CHANGELOG.md': 'CHANGELOG.md', 'experiments/README.md': 'experiments/README.md',
             'notebooks/README.md': 'notebooks/README.md'}
OWN = 'docs/'                            # the folder whose pages are where they are in the site
LANGUAGES = {'.py': 'python', '.json': 'json', '.md': 'markdown', '.toml': 'toml', '.yml': 'yaml'}
SHOWN = {*LANGUAGES, '', '.cff', '.cfg', '.csv', '.hlo', '.log', '.txt'}
LONGEST = 200_000                        # bytes of a file that is shown as a page
# A block or a word of code, which may look like a link; or the target of a link.
LINK = re.compile(r'^(?P<fence>```|~~~).*?^(?P=fence)|(?<!`)`[^`\n]+`(?!`)|'
                  r'\]\((?P<target>[^)\s#]+)(?P<part>#[^)\s]*)?\)', re.DOTALL | re.MULTILINE)


def elsewhere():
  """Returns dict path in the repository -> path in the site, of pages that do not lie in docs/."""
  found = {page: place for page, place in ELSEWHERE.items() if (ROOT / page).exists()}
  for page in sorted((ROOT / 'experiments').glob('*/README.md')):
    found[page.relative_to(ROOT).as_posix()] = f'experiments/{page.parent.name}.md'
  for page in sorted((ROOT / 'notebooks').glob('*.ipynb')):
    found[page.relative_to(ROOT).as_posix()] = f'notebooks/{page.stem}.md'
  return found


def place(path):
  """Returns where a file or folder of the repository is in the site; None where there is no such thing."""
  full = ROOT / path
  if not full.exists():
    return None
  if path in (found := elsewhere()):
    return found[path]
  if path.startswith(OWN) and (path.endswith('.md') or path.startswith(f'{OWN}assets/')):
    return path.removeprefix(OWN)
  if full.is_dir():
    return f'source/{path}/index.md'
  return f'source/{path}.md' if _shown(full) else f'files/{path}'


def linked(text, origin, here):
  """Returns (`text` with links as they are in the site, paths in the repository that it links to).

  Args:
    origin: where the page lies in the repository: its links are relative to that.
    here:   where the page lies in the site.
  """
  targets = []

  def moved(match):
    target = match['target']
    if not target or re.match(r'[a-z]+:', target):
      return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    there = place(path)
    if there is None:
      return match[0]                    # a broken link, which the build complains of
    targets.append(path)
    return f']({posixpath.relpath(there, posixpath.dirname(here) or ".")}{match["part"] or ""})'

  return LINK.sub(moved, text), targets


def shown(path):
  """Returns the page of a file or a folder of the repository as Markdown; None of a file that is copied."""
  full = ROOT / path
  if full.is_dir():
    return _folder(full)
  if not _shown(full):
    return None
  text = full.read_text(encoding='utf-8')
  fence = '~' * max(6, 1 + max(map(len, re.findall('~+', text)), default=0))
  return f'{_head(path)}{fence}{LANGUAGES.get(full.suffix, "text")}\n{text}\n{fence}\n'


def says(path):
  """Returns the first paragraph of the docstring of a Python file, on one line; '' of other files."""
  if not path.endswith('.py'):
    return ''
  said = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding='utf-8'))) or ''
  return ' '.join(said.partition('\n\n')[0].split())


def _folder(full):
  """The listing of a folder: files with what they say, then folders."""
  entries = sorted(entry for entry in full.iterdir() if not entry.name.startswith(('_', '.')))
  lines = [_head(full.relative_to(ROOT).as_posix()), '| file | says |', '|---|---|']
  for entry in sorted(entries, key=lambda entry: entry.is_dir()):
    said = says(entry.relative_to(ROOT).as_posix()).replace('|', r'\|')
    lines.append(f'| [{entry.name}]({full.name}/{entry.name}) | {said} |')
  return '\n'.join(lines) + '\n'


def _head(path):
  return f'---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n# {path}\n\n'


def _shown(full):
  return full.suffix in SHOWN and full.stat().st_size < LONGEST
