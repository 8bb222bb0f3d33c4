"""The table of a report as a file for papers and spreadsheets: CSV, Markdown, LaTeX.

Results come with the standard deviation of their seeds. A result is bold where the page marks the result.
"""

import csv
import io

# Characters that LaTeX reads as commands -> how they are written.
LATEX = {'\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_', '{': r'\{',
         '}': r'\}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$', '–': '--'}


def as_csv(headings, rows):
  """Returns the table as CSV: numbers in full, with a column of the spread beside each that has a spread."""
  spread = [any(cells[at].spread for cells in rows) for at in range(len(headings))]
  out = io.StringIO()
  write = csv.writer(out, lineterminator='\n').writerow
  write([text for heading, has in zip(headings, spread) for text in [heading, f'{heading} sd'][:1 + has]])
  for cells in rows:
    plain = lambda cell: cell.text if cell.value is None else cell.value
    write([value for cell, has in zip(cells, spread) for value in [plain(cell), cell.spread][:1 + has]])
  return out.getvalue()


def as_markdown(headings, rows):
  """Returns the table in Markdown; the first column is aligned left, all others right."""
  escaped = lambda text: text.replace('|', r'\|')
  text = lambda cell: f'**{escaped(cell.text)}**' if cell.kind == 'best' else escaped(cell.text)
  lines = [map(escaped, headings), ['---', *['---:'] * (len(headings) - 1)],
           *(map(text, cells) for cells in rows)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def as_latex(headings, rows):
  """Returns the table as a tabular of LaTeX with the rules of the package booktabs."""
  escaped = lambda text: ''.join(LATEX.get(letter, letter) for letter in text)
  text = lambda cell: rf'\textbf{{{escaped(cell.text)}}}' if cell.kind == 'best' else escaped(cell.text)
  line = lambda texts: f'{" & ".join(texts)} \\\\\n'
  head = f'\\begin{{tabular}}{{l{"r" * (len(headings) - 1)}}}\n\\toprule\n{line(map(escaped, headings))}'
  body = ''.join(line(map(text, cells)) for cells in rows)
  return f'{head}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n'


FORMS = {'.csv': as_csv, '.md': as_markdown, '.tex': as_latex}
