"""Routed text made visible: each token in the colour of its expert."""

import colorsys
import dataclasses
import itertools

from matplotlib import patches
import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.routing import choices as routing

END = '■'                                # of a document
# Light forms of the palette, so that black text stays readable on all of them.
TINTS = ('#9CCBEA', '#F5B78A', '#8FD6BC', '#EBC3DA', '#F7D27C', '#D9D9D9', '#B9B4E6', '#D3DE8F')


def colours(num_experts):
  """Returns a light colour '#RRGGBB' per expert; up to eight, the colour-blind-safe tints.

  More experts than the eye can name are spread over hue and lightness by two irrational
  steps, so that all colours differ; the expert's number is in the tooltip.
  """
  if num_experts <= len(TINTS):
    return list(TINTS[:num_experts])
  tints = []
  for e in range(num_experts):
    rgb = colorsys.hls_to_rgb(e * 0.381966 % 1.0, 0.72 + 0.16 * (e * 0.754878 % 1.0), 0.65)
    tints.append('#' + ''.join(f'{round(255 * c):02X}' for c in rgb))
  return tints


def visible(piece):
  """Returns `piece` with white space and control characters made visible, without line ends; never ''."""
  text = piece.replace('\n', '↵').replace('\t', '→   ').replace('\r', '␍')
  return ''.join(c if c.isprintable() else '·' for c in text or '·')


@dataclasses.dataclass(frozen=True)
class Sample:
  """A stretch of text as a sparse layer routed it.

  pieces: list of T texts of tokens, which together are the text.
  taken:  list of T lists of (expert, weight), largest weight first. [] = no expert took the token. None = the
    layer did not get the token: it is the last of a window, which is predicted and never read.
  table:  `routing.specialisation` over the whole batch, texts in place of token ids.
  """
  pieces: list
  taken: list
  num_experts: int
  table: list


def sample(chosen, batch, vocabulary, length=700):
  """Returns dict layer name -> Sample of the first `length` real tokens of a batch.

  Args:
    chosen:     dict layer name -> routing.Choices of that batch.
    batch:      dict of i32[B,T].
    vocabulary: of the batch, see `stmoe.data.text.vocab`.
  """
  shown, stacks = {}, {}
  for layer, routed in chosen.items():
    stack = routing.stack_of(layer)
    if stack not in stacks:
      ids, places = _text(batch, stack, length)
      stacks[stack] = pieces(vocabulary, ids), places
    named = lambda v: texts(vocabulary, [v])[0]
    table = [(share, [(named(v), count, lift) for v, count, lift in best])
             for share, best in routing.specialisation(routed, batch[f'{stack}_input_tokens'])]
    text, places = stacks[stack]
    shown[layer] = Sample(pieces=text, taken=[None if t is None else routed.experts[b][t] for b, t in places],
                          num_experts=routed.num_experts, table=table)
  return shown


def _text(batch, stack, length):
  """(ids of the first `length` real tokens of a stack's text, [(row, place where each is read or None)]).

  A decoder reads a target one place later, after the start of its segment, and the last target not at all.
  """
  segments = np.asarray(batch[f'{stack}_segment_ids'])
  real = np.argwhere(segments > 0)[:length].tolist()                 # [n, 2]
  targets = batch.get(f'{stack}_target_tokens')
  if targets is None:
    ids = np.asarray(batch[f'{stack}_input_tokens'])
    return [int(ids[b, t]) for b, t in real], real
  read = np.zeros(segments.shape, bool)
  read[:, :-1] = segments[:, 1:] == segments[:, :-1]
  return [int(targets[b, t]) for b, t in real], [(b, t + 1 if read[b, t] else None) for b, t in real]


def pieces(vocabulary, ids):
  """Returns the text of each of the tokens `ids`, which together are the whole text; of EOS it is '■'.

  A character of several tokens is the text of its last token; its other tokens have the text ''.
  """
  texts_of = []
  for ended, run in itertools.groupby(ids, lambda v: v == vocabulary.eos_id):
    run = list(run)
    texts_of += [END] * len(run) if ended else _split(vocabulary, run)
  return texts_of


def _split(vocabulary, ids):
  stream = vocabulary.stream()
  parts = [stream(v) for v in ids]
  return [*parts[:-1], parts[-1] + stream.rest()]


def texts(vocabulary, ids):
  """Returns the text of each token by itself; '·' for the start, parts of a character and the like."""
  names = {vocabulary.eos_id: END}
  return [names.get(int(v)) or vocabulary.decode([int(v)]) or '·' for v in ids]


def layout(pieces, columns):
  """Returns [(row, column, text)] of tokens written in lines of at most `columns` characters."""
  row, column, places = 0, 0, []
  for piece in pieces:
    text = visible(piece)
    if column and column + len(text.rstrip('↵')) > columns:          # line ends may stand in the margin
      row, column = row + 1, 0
    places.append((row, column, text))
    column += len(text)
    if piece.endswith('\n'):
      row, column = row + 1, 0
  return places


def figure(samples, columns=84, length=260):
  """Returns the Figure of a routed text, once per sparse layer, tokens coloured by expert.

  Args:
    samples: dict layer name -> Sample.
    columns: characters of a line.
    length:  tokens drawn.
  """
  placed = {name: layout(routed.pieces[:length], columns) for name, routed in samples.items()}
  heights = [places[-1][0] + 1 for places in placed.values()]
  drawn, axes = canvas.new(len(samples), 1, 0.1 * columns + 0.4, 0.185 * sum(heights) + 0.75 * len(samples),
                           height_ratios=heights)
  for ax, lines, (name, routed) in zip(axes[:, 0], heights, samples.items()):
    palette = colours(routed.num_experts)
    for (line, column, text), choices in zip(placed[name], routed.taken):
      colour = canvas.FAINT if choices == [] else canvas.INK
      _token(ax, line, column, text, [palette[e] for e, _ in choices or ()], colour)
    ax.set_xlim(0, columns)
    ax.set_ylim(lines, -0.1)
    ax.axis('off')
    canvas.label(ax, title=f'{name}: {routed.num_experts} experts')
    _key(ax, palette[:24])
  return drawn


def _token(ax, line, column, text, shades, colour):
  """Draws one token in `colour`: background of its first expert, bar below of its second."""
  width = len(text)
  box = lambda top, height, colour: ax.add_patch(
      patches.Rectangle((column + 0.05, line + top), width - 0.1, height, color=colour, lw=0))
  if shades:
    box(0.04, 0.9, shades[0])
  if len(shades) > 1:
    box(0.78, 0.16, shades[1])
  for i, character in enumerate(text):
    if character != ' ':
      ax.text(column + i + 0.5, line + 0.44, character, ha='center', va='center', fontsize=8.5,
              family='monospace', color=colour, parse_math=False)


def _key(ax, palette):
  """Writes the numbers of the experts in their colours at the right end of the title line."""
  for place, (e, colour) in enumerate(reversed(list(enumerate(palette)))):
    ax.annotate(str(e), (1, 1), xycoords='axes fraction', xytext=(-8 - 16 * place, 6), fontsize=8,
                textcoords='offset points', ha='center', va='baseline', color=canvas.INK,
                annotation_clip=False, bbox=dict(facecolor=colour, edgecolor='none', pad=2.0))
