"""The option --checkpoints DIR: tiny checkpoints with expected outputs; default: tests/data/checkpoints."""

import pathlib

DEFAULT = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'


def pytest_addoption(parser):
  parser.addoption('--checkpoints', default=str(DEFAULT), metavar='DIR',
                   help='folder of checkpoints with expected outputs; default: tests/data/checkpoints')


def folder(config):
  """Returns the folder of cases; the default also when this file was loaded after the options."""
  return pathlib.Path(config.getoption('checkpoints', default=str(DEFAULT)))


def pytest_generate_tests(metafunc):
  if 'case' in metafunc.fixturenames:
    found = sorted(path.parent for path in folder(metafunc.config).glob('*/expected.npz'))
    metafunc.parametrize('case', found, ids=[path.name for path in found])
