"""Figures that a single method has: a file for each, found by its name.

A file defines `draw(run) -> dict stem -> Figure`, empty for a run that logged nothing of the method, and
CAPTIONS, dict stem -> text. `stmoe plot`, `compare` and `report` draw all of them.
"""

from stmoe import lookup


def modules():
  """Returns the modules of this folder and of plugins, sorted by name."""
  return [lookup.module('figure', name) for name in lookup.available('figure')]


def draw(run):
  """Returns dict stem -> Figure of everything that is particular to the method of `run`."""
  drawn = {}
  for module in modules():
    drawn |= module.draw(run)
  return drawn


def captions():
  """Returns dict stem -> caption of all figures of this folder."""
  return {stem: text for module in modules() for stem, text in module.CAPTIONS.items()}
