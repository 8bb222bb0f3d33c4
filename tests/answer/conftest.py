"""The option --bigbench DIR: a folder of BIG-bench's task files; default: tests/data/bigbench."""

import pathlib

import pytest

DATA = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'bigbench'


def pytest_addoption(parser):
  parser.addoption('--bigbench', default=str(DATA), metavar='DIR',
                   help='folder of task files with the figures of trivial systems in its README.md')


@pytest.fixture(scope='session')
def bigbench(request):
  return pathlib.Path(request.config.getoption('--bigbench', default=str(DATA)))
