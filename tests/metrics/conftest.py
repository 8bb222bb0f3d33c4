"""The option --data DIR: a folder of data sets with the figures of trivial systems on them."""

import pathlib

import pytest


def pytest_addoption(parser):
  parser.addoption('--data', type=pathlib.Path, help='folder with BASELINES.md and the data sets it is about')


@pytest.fixture(scope='session')
def data(request):
  folder = request.config.getoption('--data', default=None)
  if folder is None:
    pytest.skip('needs --data DIR')
  return folder
