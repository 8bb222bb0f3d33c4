"""Notebooks as pages: their text, their code, what they printed and drew."""

import itertools
import json
import re


def page(text, name):
  """Returns (Markdown, dict file name -> base64 of a picture) of a notebook, from its title on.

  text: the notebook's JSON; name: with which the names of pictures begin.
  """
  lines, pictures = [], {}
  for cell in itertools.dropwhile(lambda cell: cell['cell_type'] == 'code', json.loads(text)['cells']):
    source = ''.join(cell['source'])
    lines.append(_prose(source) if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
    for output in cell.get('outputs', ()):
      data = output.get('data', {})
      if 'image/png' in data:
        file = f'{name}_{len(pictures)}.png'
        pictures[file] = ''.join(data['image/png'])
        lines.append(f'![figure {len(pictures)}]({file})')
      elif said := ''.join(output.get('text', data.get('text/plain', ''))).rstrip():
        lines.append(f'```text\n{_plain(said)}\n```')
  return '\n\n'.join(lines) + '\n', pictures


def _prose(text):
  """Text whose formulas are code: the site loads no program that would set them."""
  return re.sub(r'\$([^$\n]+)\$', r'`\1`', text)


def _plain(text):
  """What was printed, without the colours of a terminal."""
  return re.sub(r'\x1b\[[0-9;]*m', '', text).replace('```', "'''")
