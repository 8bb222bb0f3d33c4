"""Figures of a fitted law: a file each, found by its name; {} where the law has no such figure.

A file defines `draw(study) -> dict stem -> Figure` and CAPTIONS, dict stem -> text.
"""

import importlib
import pkgutil

import matplotlib
import numpy as np

from stmoe.analysis import table as tables


def modules():
  """Returns the modules of this folder, sorted by name."""
  names = sorted(m.name for m in pkgutil.iter_modules(__path__))
  return [importlib.import_module(f'{__name__}.{name}') for name in names]


def draw(study):
  """Returns dict stem -> Figure of all figures that this study can have."""
  return {stem: figure for module in modules() for stem, figure in module.draw(study).items()}


def captions():
  """Returns dict stem -> text."""
  return {stem: text for module in modules() for stem, text in module.CAPTIONS.items()}


def shades(values):
  """Returns dict value -> colour, dark for the smallest; for series that are ordered."""
  unique = sorted(set(values))
  return dict(zip(unique, matplotlib.colormaps['viridis'](np.linspace(0.0, 0.85, len(unique)))))


def spread(values, most):
  """Returns the sorted different values, at most `most` of them, evenly from the first to the last."""
  unique = sorted(set(values))
  if len(unique) <= most:
    return unique
  return [unique[i] for i in np.linspace(0, len(unique) - 1, most).round().astype(int)]


def held_rows(study):
  """Returns bool[R]: the runs that were held out, none without."""
  return study.held_out.rows if study.held_out else np.zeros(len(study.table['loss']), bool)


def short(number):
  """Returns '1.3B', '25M', '8': sizes as people say them."""
  return tables.engineering(number).replace('G', 'B')
