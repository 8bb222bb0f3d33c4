"""The option --oracles DIR, and the report of what the cases under it did not reach."""

import collections
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cases  # noqa: E402


def pytest_addoption(parser):
  parser.addoption('--oracles', default=str(cases.DEFAULT), metavar='DIR',
                   help='folder of recorded reference cases (*.json + *.npz); default: tests/data/oracles')


def folder(config):
  """Returns the folder of cases; the default also when this file was loaded after the options."""
  return config.getoption('oracles', default=str(cases.DEFAULT))


# Kinds of cases that take many seconds each.
LONG = {('compete_smoe', 'lm_competition_step'), ('rewiring', 'online')}


def marked(headers, place):
  """Returns the headers as parameters: of our own copies, one short case of a method is not a slow test."""
  seen, slow = set(), place == str(cases.DEFAULT)
  params = []
  for header in headers:
    other = header.method in seen or (header.method, header.kind) in LONG
    params.append(pytest.param(header, marks=[pytest.mark.slow] * (slow and other)))
    if not other:
      seen.add(header.method)
  return params


def pytest_generate_tests(metafunc):
  if 'header' in metafunc.fixturenames:
    headers = [h for h in cases.find(folder(metafunc.config)) if cases.implemented(h.method)]
    ids = [f'{h.method}/{h.kind}/{h.name}' for h in headers]
    metafunc.parametrize('header', marked(headers, folder(metafunc.config)), ids=ids)


def pytest_terminal_summary(terminalreporter, config):
  count = collections.Counter(h.method for h in cases.find(folder(config)))
  missing = {method: n for method, n in sorted(count.items()) if not cases.implemented(method)}
  reached = sum(count.values()) - sum(missing.values())
  terminalreporter.section('oracles')
  methods = len(count) - len(missing)
  terminalreporter.line(f'{reached} cases of {methods} implemented methods in {folder(config)}')
  if missing:
    terminalreporter.line(f'{sum(missing.values())} cases of {len(missing)} methods not implemented: '
                          + ', '.join(f'{method} ({n})' for method, n in missing.items()))
