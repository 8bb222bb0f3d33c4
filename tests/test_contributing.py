"""The contributor's page names every kind of file there is, and paths that exist."""

import pathlib
import re

from stmoe import lookup

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def test_every_kind_has_a_row_with_folders_that_exist():
  rows = re.findall(r'^\| ([\w, ]+) \| (stmoe/[\w/, ]+) \|', PAGE, re.M)
  assert {kind for kinds, _ in rows for kind in kinds.split(', ')} == set(lookup.PACKAGES)
  concepts = (ROOT / 'docs' / 'concepts.md').read_text(encoding='utf-8')
  paths = re.findall(r'\]\(\.\./([^)#]+)\)', concepts)
  paths += [path for _, folders in rows for path in folders.split(', ')]
  paths += re.findall(r'tests/[\w/.]+\w', PAGE) + re.findall(r'\]\((?!https?:)([^)#]+)\)', PAGE)
  assert [path for path in paths if not (ROOT / path).exists()] == []
