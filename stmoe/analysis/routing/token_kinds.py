"""What sort of token each expert takes: shares by lexical kind, in numbers and as a heat map."""

import keyword
import math

import numpy as np

from stmoe.analysis import canvas

KINDS = ('keyword', 'name', 'capital', 'number', 'operator', 'bracket', 'quote', 'line end', 'space', 'other')
_MARKS = {'operator': '+-*/=<>%&|^~@!.,:;#\\', 'bracket': '()[]{}', 'quote': '\'"`'}


def kind(piece):
  """Returns the kind, one of KINDS, of the text of a token.

  >>> [kind(piece) for piece in (' return', 'self', 'Error', '42', '):', "'''", '  ', chr(10), 'x=')]
  ['keyword', 'name', 'capital', 'number', 'bracket', 'quote', 'space', 'line end', 'other']
  """
  text = piece.strip()
  if not text:
    return 'line end' if '\n' in piece else 'space' if piece else 'other'
  if keyword.iskeyword(text):
    return 'keyword'
  if text.replace('_', 'a').isalpha():
    return 'capital' if text[0].isupper() else 'name'
  if text.isdigit():
    return 'number'
  marks = set(text) <= set(''.join(_MARKS.values()))
  return next((name for name, letters in _MARKS.items() if marks and text[0] in letters), 'other')


def counts(seen):
  """Returns f64[kinds,E]: how often each expert of routing_view.Sample `seen` took a token of each kind."""
  table = np.zeros((len(KINDS), seen.num_experts))
  for piece, choices in zip(seen.pieces, seen.taken):
    for expert, _ in choices or ():
      table[KINDS.index(kind(piece)), expert] += 1
  return table


def information(table):
  """Returns the mutual information in bits of the two axes of counts [kinds,E]; 0 = experts know no kinds."""
  joint = table / max(table.sum(), 1)
  alone = joint.sum(1, keepdims=True) * joint.sum(0)                 # [kinds, E]
  positive = joint > 0
  return float(np.sum(joint[positive] * np.log2(joint[positive] / alone[positive])))


def figure(samples, columns=2):
  """Returns the Figure of a heat map for each layer: what share of a kind's choices each expert got.

  Rows are kinds and add up to 100 %; kinds that do not occur are left out.

  Args:
    samples: dict layer name -> routing_view.Sample.
    columns: heat maps beside each other.
  """
  tables = {layer: counts(routed) for layer, routed in samples.items()}
  occurring = sum(table.sum(1) for table in tables.values()) > 0     # [kinds]
  kinds = [name for name, occurs in zip(KINDS, occurring) if occurs]
  columns = min(columns, len(tables))
  rows = math.ceil(len(tables) / columns)
  drawn, axes = canvas.new(rows, columns, 5.4 * columns, rows * (0.3 * len(kinds) + 1.1))
  for ax in axes.flat[len(tables):]:
    ax.remove()
  for ax, (layer, table) in zip(axes.flat, tables.items()):
    _heat(ax, table[occurring], kinds)
    canvas.label(ax, 'expert', title=f'{layer}: % of a kind, {information(table):.2f} bits')
  return drawn


def _heat(ax, table, kinds):
  shares = table / np.maximum(table.sum(1, keepdims=True), 1)        # [kinds, E]
  ax.pcolormesh(shares, cmap='Blues', vmin=0, vmax=1, edgecolor='white', lw=0.8)
  for (row, expert), share in np.ndenumerate(shares):
    if share >= 0.005:
      ax.text(expert + 0.5, row + 0.5, f'{100 * share:.0f}', ha='center', va='center', fontsize=8,
              color='white' if share > 0.55 else canvas.INK)
  ax.grid(False)
  ax.invert_yaxis()
  ax.set_xticks(np.arange(shares.shape[1]) + 0.5, range(shares.shape[1]))
  ax.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
