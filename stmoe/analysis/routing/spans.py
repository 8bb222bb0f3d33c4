"""Routed text as HTML: tokens in the colours of their experts, experts to click on, flows between layers."""

import collections
import html

import numpy as np

from stmoe.analysis.routing import text

NOBODY = 'no expert (dropped)', 'predicted, not read'
RARE = 0.1                               # times the even share, below which an expert is rare
WIDEST = 64                              # experts of layers whose flow is drawn


def to_html(seen):
  """Returns a <div> of Sample `seen` with one <span> per token, coloured by expert; all is escaped.

  Background is the expert of largest weight, as strong as the weight; the underline is the second expert. The
  tooltip names all. More experts than there are colours with names are numbered.
  """
  palette = text.colours(seen.num_experts)
  largest = max((abs(weight) for experts in seen.taken for _, weight in experts or ()), default=1) or 1
  spans = []
  for piece, experts in zip(seen.pieces, seen.taken):
    words = html.escape(text.visible(piece)) + ('\n' if piece.endswith('\n') else '')
    names = ', '.join(f'expert {e} ({w:.2f})' for e, w in experts or ()) or NOBODY[experts is None]
    title = html.escape(f'{piece!r}: {names}', quote=True)
    if not experts:
      kind = 'unread' if experts is None else 'none'
      spans.append(f'<span class="{kind}" title="{title}">{words}</span>')
      continue
    (first, weight), *others = experts
    under = f';--second:{palette[others[0][0]]}' if others else ''
    style = f'--first:{palette[first]};--weight:{abs(weight) / largest:.2f}{under}'
    numbers = ' '.join(str(e) for e, _ in experts)
    spans.append(f'<span style="{style}" data-first="{first}" data-e="{numbers}" title="{title}">{words}'
                 '</span>')
  numbered = ' numbered' if seen.num_experts > len(text.TINTS) else ''
  return f'<div class="routed{numbered}">{"".join(spans)}</div>'


def chips(shares):
  """Returns a <div> of one chip per expert with its share of choices; shares: list of floats.

  In a page with the script of reports, a click on a chip shows the tokens of that expert alone.
  """
  palette = text.colours(len(shares))
  kind = lambda share: 'dead' if not share else 'rare' if share < RARE / len(shares) else ''
  buttons = ''.join(
      f'<button type="button" class="{kind(share)}" data-expert="{e}" aria-pressed="false" '
      f'style="background:{palette[e]}">{e}: {share:.0%}</button>' for e, share in enumerate(shares))
  return f'<div class="chips">{buttons}</div>'


def dropped(seen):
  """Returns the texts of tokens that no expert took, the most frequent first, as (text, number)."""
  lost = collections.Counter(piece for piece, experts in zip(seen.pieces, seen.taken) if experts == [])
  return lost.most_common()


def flow(first, second):
  """Returns f64[E,E'], the share of the tokens of each expert of a layer that each expert of another gets.

  Of both layers, Samples of the same tokens, the expert of largest weight counts. Rows of experts without a
  token are 0.
  """
  counts = np.zeros((first.num_experts, second.num_experts))
  for before, after in zip(first.taken, second.taken):
    if before and after:
      counts[before[0][0], after[0][0]] += 1
  return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def flow_html(shares):
  """Returns the <svg> of a `flow` f64[E,E']: experts of the layer before are its rows."""
  rows, columns = shares.shape
  cells = ''.join(
      f'<rect x="{after}" y="{before}" width="1" height="1" fill-opacity="{share:.2f}">'
      f'<title>expert {before} to expert {after}: {share:.0%}</title></rect>'
      for before, row in enumerate(shares) for after, share in enumerate(row))
  return f'<svg class="flow" viewBox="0 0 {columns} {rows}" role="img" aria-label="flow">{cells}</svg>'
