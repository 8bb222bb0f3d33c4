"""Lets the tests of this folder import `tiny_plan`; blocks of one size, which compile faster."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Executors with blocks of two rows."""
  from pallas_kernels import walk
  sizes, walk.sizes = walk.sizes, lambda *_: (2,)
  yield
  walk.sizes = sizes
