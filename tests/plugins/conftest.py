"""What every test of plugins starts from: no plugin."""

import sys

import pytest

from stmoe import plugins


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
  """No plugin is there before a test, and none after it."""
  monkeypatch.setenv(plugins.VARIABLE, '')
  before = set(sys.modules)
  yield
  for name in set(sys.modules) - before:
    if name.endswith(('.mine', '.other', '.held')):
      del sys.modules[name]
