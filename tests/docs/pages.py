"""The pages that people read: their blocks of code, and what the comments before a block say of it.

A page is a script: its blocks run from top to bottom in one folder. A comment in front of a block may say
  <!-- given: NAME ... -->   what lies in the folder: runs/NAME is a tiny run, others are in given.py
  <!-- file: NAME -->        the block is a file of that name
  <!-- not run: why -->      the block is not run by a test, and why not
"""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md')),
         *sorted((ROOT / 'docs').rglob('*.md'))]
BLOCK = re.compile(r'(?P<notes>(?:^<!-- [^\n]* -->\n)*)^```(?P<language>\w*)\n(?P<text>.*?)^```$',
                   re.DOTALL | re.MULTILINE)


@dataclasses.dataclass
class Block:
  """A block of code of a page; line: where it begins; notes: what the comments before it say."""
  page: pathlib.Path
  line: int
  language: str
  text: str
  notes: list[str]

  def note(self, key):
    """Returns what stands behind `key: ` in a comment before the block; '' where there is none."""
    return next((note.removeprefix(f'{key}: ') for note in self.notes if note.startswith(f'{key}: ')), '')

  @property
  def commands(self):
    """The words of each command of a block of the shell, without comments."""
    whole = self.text.replace('\\\n', ' ')                           # lines that go on
    lines = (shlex.split(line, comments=True) for line in whole.splitlines())
    return [words for words in lines if words]

  def __str__(self):
    return f'{self.page.relative_to(ROOT)}:{self.line}'


def blocks(page):
  """Returns the Blocks of a page."""
  text = page.read_text(encoding='utf-8')
  return [Block(page, text[:match.start('text')].count('\n') + 1, match['language'], match['text'],
                re.findall(r'<!-- (.*) -->', match['notes'])) for match in BLOCK.finditer(text)]


def titled(page, title):
  """Returns the text of the block of docs/`page` (or the README) before which the comment `title` stands."""
  path = ROOT / page
  return next(block.text for block in blocks(path) if title in block.notes)
