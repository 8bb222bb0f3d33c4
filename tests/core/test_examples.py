"""The examples in the docstrings of the core print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import stmoe.core

MODULES = sorted(m.name for m in pkgutil.walk_packages(stmoe.core.__path__, 'stmoe.core.') if not m.ispkg)


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.failed == 0


@pytest.mark.parametrize('name', ['assignment', 'layouts', 'noise', 'rows', 'losses', 'metrics'])
def test_there_are_examples(name):
  assert doctest.testmod(importlib.import_module(f'stmoe.core.{name}')).attempted >= 2
