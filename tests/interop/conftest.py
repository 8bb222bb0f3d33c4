"""The options --checkpoints DIR and --tokenizers DIR: folders with expected outputs; default: in tests/data.

In DIR of --checkpoints a folder with expected.npz is a model, one with expected_text.json a model and its
tokenizer. In DIR of --tokenizers a folder with expected.json is a tokenizer.
"""

import pathlib

DATA = pathlib.Path(__file__).resolve().parent.parent / 'data'
# What a test asks for -> the option that names the folder of cases, and the file that a case has.
CASES = {'case': ('checkpoints', 'expected.npz'), 'text_case': ('checkpoints', 'expected_text.json'),
         'tokenizer_case': ('tokenizers', 'expected.json')}


def pytest_addoption(parser):
  for name in ('checkpoints', 'tokenizers'):
    parser.addoption(f'--{name}', default=str(DATA / name), metavar='DIR',
                     help=f'folder of {name} with expected outputs; default: tests/data/{name}')


def folder(config, name):
  """Returns the folder of cases; the default also when this file was loaded after the options."""
  return pathlib.Path(config.getoption(name, default=str(DATA / name)))


def pytest_generate_tests(metafunc):
  for fixture, (option, file) in CASES.items():
    if fixture in metafunc.fixturenames:
      found = sorted(path.parent for path in folder(metafunc.config, option).glob(f'*/{file}'))
      metafunc.parametrize(fixture, found, ids=[path.name for path in found])
