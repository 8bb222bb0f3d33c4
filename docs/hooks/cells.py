"""Notebooks as pages: their text, their code, what they printed and drew."""

import json
import re


def page(text, name):
  """Returns (Markdown, dict file name -> base64 of a picture) of the notebook with the JSON `text`.

  name: of the notebook, with which the names of pictures begin.
  """
  lines, pictures = [], {}
  for cell in json.loads(text)['cells']:
    source = ''.join(cell['source'])
    lines.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
    for output in cell.get('outputs', ()):
      data = output.get('data', {})
      if 'image/png' in data:
        file = f'{name}_{len(pictures)}.png'
        pictures[file] = ''.join(data['image/png'])
        lines.append(f'![figure {len(pictures)}]({file})')
      elif said := ''.join(output.get('text', data.get('text/plain', ''))).rstrip():
        lines.append(f'```text\n{_plain(said)}\n```')
  return '\n\n'.join(lines) + '\n', pictures


def _plain(text):
  """What was printed, without the colours of a terminal."""
  return re.sub(r'\x1b\[[0-9;]*m', '', text).replace('```', "'''")
