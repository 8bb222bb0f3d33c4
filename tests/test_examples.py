"""Every example in a docstring of the tree prints what it says; modules are found by their text."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Folder -> the package it is (setup.cfg).
PACKAGES = {'stmoe': 'stmoe', 'pallas_kernels': 'pallas_kernels', 'configs': 'stmoe.configs',
            'experiments': 'stmoe.experiments'}


def modules():
  """Yields the names of the modules in whose text `>>> ` stands."""
  for folder, package in PACKAGES.items():
    for path in sorted((ROOT / folder).rglob('*.py')):
      if '>>> ' in path.read_text():
        parts = path.relative_to(ROOT / folder).with_suffix('').parts
        yield '.'.join([package, *(part for part in parts if part != '__init__')])


@pytest.mark.parametrize('name', list(modules()))
def test_examples(name, shipped_sizes):
  result = doctest.testmod(importlib.import_module(name))
  assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize('name', ['assignment', 'transport.layouts', 'noise', 'transport.rows', 'losses',
                                  'metrics'])
def test_the_core_has_examples(name):
  found = doctest.DocTestFinder().find(importlib.import_module(f'stmoe.core.{name}'))
  assert sum(len(test.examples) for test in found) >= 2
