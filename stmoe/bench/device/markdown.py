"""Tables of Markdown."""


def of(columns, rows):
  """Returns a table; without rows an empty line under its headings, so that what is missing shows.

  >>> print(of(('a', 'b'), [(1, 2)]))
  | a | b |
  |---|---|
  | 1 | 2 |
  """
  line = lambda cells: f'| {" | ".join(map(str, cells))} |'
  return '\n'.join([line(columns), '|' + '---|' * len(columns),
                    *(map(line, rows) if rows else [line([''] * len(columns))])])
