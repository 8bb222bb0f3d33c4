"""Every recorded reference case of an implemented method agrees with us at its own tolerance."""

import cases


def test_case(header):
  cases.run(header)


def test_there_are_cases(pytestconfig):
  folder = pytestconfig.getoption('oracles', default=str(cases.DEFAULT))
  assert cases.find(folder), f'no *.json + *.npz under {folder}'
