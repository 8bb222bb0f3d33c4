"""The look of every figure: palette, axes, and saving, without any global matplotlib state."""

import base64
import io
import itertools
import pathlib
import sys

import matplotlib
from matplotlib import figure as mpl_figure
from matplotlib import layout_engine
from matplotlib import ticker
from matplotlib.backends import backend_agg

from stmoe import errors
from stmoe import files

# Okabe and Ito (2008): eight colours that all kinds of colour vision tell apart. Black is
# kept for text, and yellow is left out because it is invisible on white.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#5D5D5D')
INK, FAINT, GRID = '#222222', '#767676', '#E4E4E4'
DASHES = ('-', '--', ':', '-.')

# Fixed salt and no date: the same data gives the same bytes.
_SAVING = {'svg.hashsalt': 'stmoe', 'svg.fonttype': 'path'}
_SHOWN = itertools.count(1)              # of figures without a notebook: their numbers in this process


def new(rows, cols, width, height, **gridspec):
  """Returns (Figure, axes [rows][cols]) of `width` x `height` inches, dressed."""
  figure = mpl_figure.Figure(figsize=(width, height), layout='constrained', facecolor='white')
  backend_agg.FigureCanvasAgg(figure)
  figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
  axes = figure.subplots(rows, cols, squeeze=False, gridspec_kw=gridspec)
  for ax in axes.flat:
    dress(ax)
  return figure, axes


def dress(ax):
  """Gives `ax` the project's look: two spines, light horizontal grid, small grey ticks."""
  ax.spines[['top', 'right']].set_visible(False)
  ax.spines[['left', 'bottom']].set_color(FAINT)
  ax.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)
  ax.grid(axis='y', color=GRID, linewidth=0.8)
  ax.set_axisbelow(True)


def label(ax, x=None, y=None, title=None):
  """Writes the axis labels and the left-aligned title of `ax`."""
  if x:
    ax.set_xlabel(x, fontsize=9.5, color=INK)
  if y:
    ax.set_ylabel(y, fontsize=9.5, color=INK)
  if title:
    ax.set_title(title, loc='left', fontsize=10.5, color=INK)


def engineering(axis):
  """Makes `axis` show 2M, 3.5G instead of long numbers or offsets."""
  axis.set_major_formatter(ticker.EngFormatter(sep=''))


def legend(figure, handles):
  """Puts a legend of `handles` (dict label -> artist) above all axes, in as many columns as there is room."""
  if len(handles) > 0:
    entry = 6 * max(map(len, handles)) + 40                          # points, about
    columns = max(1, min(len(handles), 5, int(72 * figure.get_figwidth() / entry)))
    figure.legend(handles.values(), handles.keys(), loc='outside upper center', frameon=False,
                  ncols=columns, fontsize=10, handlelength=1.6)


def styles(labels):
  """Returns dict label -> (colour, dash), the same for equal labels, in order of appearance."""
  unique = list(dict.fromkeys(labels))
  return {name: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)])
          for i, name in enumerate(unique)}


def encode(figure, form, dpi=150):
  """Returns the bytes of `figure` as 'png' or 'svg'; the same figure, the same bytes."""
  if not isinstance(figure.get_layout_engine(), layout_engine.PlaceHolderLayoutEngine):
    figure.draw_without_rendering()
    figure.set_layout_engine('none')                                 # another draw would move things a little
  out = io.BytesIO()
  metadata = {'Date': None} if form == 'svg' else {'Software': None}
  with matplotlib.rc_context(_SAVING):
    figure.savefig(out, format=form, dpi=dpi, metadata=metadata)
  return out.getvalue()


def show(figure):
  """Shows `figure` below the cell of a notebook; elsewhere writes it as figures/PROGRAM_1.png, and so on."""
  data = encode(figure, 'png', dpi=110)
  if 'IPython' in sys.modules and sys.modules['IPython'].get_ipython():
    from IPython import display
    display.display(display.Image(data))
    return
  path = pathlib.Path('figures', f'{pathlib.Path(sys.argv[0]).stem or "figure"}_{next(_SHOWN)}.png')
  path.parent.mkdir(exist_ok=True)
  files.write_bytes(path, data)
  print(path)


def save(figure, folder, stem):
  """Writes `figure` as folder/stem.png and .svg; returns both paths. A `folder` that is a link is refused."""
  if folder.is_symlink():
    raise errors.UserError(f'{folder} is a link, and figures of runs are not written through one; remove it')
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / f'{stem}.{form}' for form in ('png', 'svg')]
  for path in paths:
    files.write_bytes(path, encode(figure, path.suffix[1:]))
  return paths


def data_uri(figure):
  """Returns `figure` as an SVG data URI, for a page that needs no other file."""
  return 'data:image/svg+xml;base64,' + base64.b64encode(encode(figure, 'svg')).decode()
