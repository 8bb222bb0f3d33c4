"""The parts of an HTML page that needs no other file: its style, tables that can be sorted, figures.

Everything that is put in is escaped. The only script sorts tables. A content security policy with the
script's hash keeps browsers from running any other script, and from loading anything.
"""

import base64
import dataclasses
import hashlib
import html
import json
import re

from stmoe.analysis import canvas

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #222;
  max-width: 1200px; margin: 0 auto; padding: 28px 24px 80px; background: #fbfbfa; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 42px 0 12px; padding-bottom: 5px; border-bottom: 1px solid #ddd; }
h3 { font-size: 15px; margin: 22px 0 8px; }
p.lead, p.note { color: #5d5d5d; margin: 4px 0 12px; }
p.note { font-size: 13px; }
p.claim { max-width: 78ch; margin: 4px 0 10px; }
nav { font-size: 13.5px; margin: 8px 0; } nav a { color: #0072B2; margin-right: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; background: #fff; }
th, td { padding: 6px 9px; border-bottom: 1px solid #e8e8e8; text-align: right; vertical-align: top; }
th { font-weight: 600; color: #5d5d5d; background: #f4f4f2; white-space: nowrap; }
td:first-child, table.sortable td { white-space: nowrap; }
td.words { text-align: left; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid #0072B2; }
th button::after { content: "\\2195"; color: #bbb; margin-left: 4px; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: #222; }
th[aria-sort=descending] button::after { content: "\\2193"; color: #222; }
td.best { font-weight: 700; color: #00664d; }
tr.baseline td { color: #767676; font-style: italic; }
table.text td.answer { white-space: nowrap; font-weight: 600; }
tr.holds td.answer { color: #00664d; } tr.fails td.answer { color: #a33b00; }
tr.open td.answer { color: #5d5d5d; }
figure { margin: 14px 0; padding: 12px; background: #fff; border: 1px solid #e2e2e2; border-radius: 8px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: 13px; color: #5d5d5d; margin-top: 8px; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: #fff; border: 1px solid #e2e2e2; border-radius: 6px; padding: 10px; font-size: 12px;
  overflow-x: auto; }
code { font: 12.5px ui-monospace, Menlo, Consolas, monospace; }
"""

# A click on a heading sorts the rows before the first baseline; cells without a number come last.
SCRIPT = """
for (const head of document.querySelectorAll('table.sortable th')) {
  const button = document.createElement('button');
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending', at = head.cellIndex;
    for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const body = head.closest('table').tBodies[0];
    const rows = [...body.rows].filter((row) => !row.classList.contains('baseline'));
    const rest = [...body.rows].filter((row) => row.classList.contains('baseline'));
    const key = (row) => row.cells[at].dataset.v ?? '';
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...rows.sort(compare), ...rest);
  });
}
"""


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table: its text, what it is sorted by (None: last), and its class."""
  text: str
  value: object = None
  kind: str = ''


def document(title, sections, css=''):
  """Returns the text of the whole page.

  Args:
    title:    in words.
    sections: list of HTML texts.
    css:      more style.
  """
  digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
  return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
          f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{esc(title)}</title><style>{CSS}{css}</style></head>\n<body>\n'
          + '\n'.join(sections) + f'\n<script>{SCRIPT}</script>\n</body></html>\n')


def heading(text):
  """Returns a heading of the page that `contents` lists."""
  return f'<h2 id="{_anchor(text)}">{esc(text)}</h2>'


def contents(headings):
  """Returns links to the headings."""
  return '<nav>' + ''.join(f'<a href="#{_anchor(text)}">{esc(text)}</a>' for text in headings) + '</nav>'


def _anchor(text):
  return re.sub(r'\W+', '-', text.lower())


def table(headings, rows, kind=''):
  """Returns a table of `rows`, texts of `row`; kind 'sortable' lets readers sort it, 'text' aligns left."""
  head = ''.join(f'<th>{esc(text)}</th>' for text in headings)
  return (f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
          f'<tbody>{"".join(rows)}</tbody></table></div>')


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
