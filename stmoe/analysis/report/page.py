"""The parts of an HTML page that needs no other file: its style, tables that can be sorted, figures.

Everything that is put in is escaped. The only script, page.js, sorts tables and draws charts. A content
security policy with that script's hash keeps browsers from running another, and from loading anything.
"""

import base64
import dataclasses
import hashlib
import html
import json
import pathlib
import re

from stmoe.analysis import canvas

CSS, SCRIPT = ((pathlib.Path(__file__).parent / f'page.{kind}').read_text('utf-8') for kind in ('css', 'js'))


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table: its text, what it is sorted by (None: last), its class, the spread of its seeds."""
  text: str
  value: object = None
  kind: str = ''
  spread: float | None = None


def document(title, sections):
  """Returns the text of the whole page.

  Args:
    title:    in words.
    sections: list of HTML texts.
  """
  digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
  return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
          f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{esc(title)}</title><style>{CSS}</style></head>\n<body>\n'
          + '\n'.join(sections) + f'\n<script>{SCRIPT}</script>\n</body></html>\n')


def heading(text):
  """Returns a heading of the page that `contents` lists."""
  return f'<h2 id="{_anchor(text)}">{esc(text)}</h2>'


def contents(headings):
  """Returns links to the headings."""
  return '<nav>' + ''.join(f'<a href="#{_anchor(text)}">{esc(text)}</a>' for text in headings) + '</nav>'


def _anchor(text):
  return re.sub(r'\W+', '-', text.lower())


def table(headings, rows, kind='', meanings=None):
  """Returns a table of `rows`, texts of `row`; kind 'sortable' lets readers sort it, 'text' aligns left.

  Args:
    headings: texts or Cells; where some are of the kind 'more', a switch above the table shows them.
    meanings: dict heading -> what the column holds, in words.
  """
  meanings, cells = meanings or {}, [cell if isinstance(cell, Cell) else Cell(cell) for cell in headings]
  title = lambda text: f' title="{esc(meanings[text])}"' if text in meanings else ''
  head = ''.join(f'<th class="{cell.kind}"{title(cell.text)}>{esc(cell.text)}</th>' for cell in cells)
  hidden = sum(cell.kind == 'more' for cell in cells)
  switch = ('<input type="checkbox" class="columns" id="columns"><label class="columns" for="columns"> '
            f'{hidden} more columns</label>') if hidden else ''
  return (f'{switch}<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
          f'<tbody>{"".join(rows)}</tbody></table></div>')


def definitions(meanings):
  """Returns dict word -> what the word means as a list under a line that opens the list."""
  rows = ''.join(f'<dt>{esc(word)}</dt><dd>{esc(text)}</dd>' for word, text in meanings.items())
  return folded('What the columns hold', f'<dl class="meanings">{rows}</dl>')


def row(cells, kind='', code=False):
  """Returns a row of a table.

  Args:
    cells: texts or Cells.
    kind:  class of the row.
    code:  whether all cells but the first are code.
  """
  parts = []
  for i, cell in enumerate(cells):
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    text = f'<code>{esc(cell.text)}</code>' if code and i else esc(cell.text)
    kinds = f' class="{cell.kind}"' if cell.kind else ''
    value = '' if cell.value is None else f' data-v="{esc(cell.value)}"'
    parts.append(f'<td{kinds}{value}>{text}</td>')
  return f'<tr class="{kind}">{"".join(parts)}</tr>'


def figure(drawn, caption):
  """Returns a Figure, inside the page, with its caption."""
  return (f'<figure><img alt="{esc(caption)}" src="{canvas.data_uri(drawn)}">'
          f'<figcaption>{esc(caption)}</figcaption></figure>')


def folded(summary, *parts, opened=False):
  """Returns the HTML texts `parts` under a line that opens them."""
  return (f'<details{" open" if opened else ""}><summary>{esc(summary)}</summary>' + '\n'.join(parts)
          + '</details>')


def download(name, content, text):
  """Returns a link with the words `text` that saves `content`, a text, as the file `name`."""
  data = base64.b64encode(content.encode()).decode()
  return (f'<p class="note"><a download="{esc(name)}" href="data:application/json;base64,{data}">{esc(text)}'
          '</a></p>')


def note(text, kind='note'):
  """Returns a paragraph, small and grey."""
  return f'<p class="{kind}">{esc(text)}</p>'


def pre(text):
  """Returns `text` with its lines as they are."""
  return f'<pre>{esc(text)}</pre>'


def plain(value):
  """Returns a text as it is and anything else as JSON."""
  return value if isinstance(value, str) else json.dumps(value)


def esc(text):
  """Returns `text` with all that HTML reads as marks made harmless."""
  return html.escape(str(text), quote=True)
