"""What every law of the loss must do: it can be fitted, and says what its coefficients are."""

import itertools
import math

import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.analysis.scaling import coefficient
from stmoe.analysis.scaling import columns

R, STARTS = 5, 8                         # runs of a table; points at which a law is looked at
SPAN = 1e7, 1e10                         # of sizes
SMALL = {'experts': (1.0, 64.0), 'granularity': (1.0, 16.0), 'expansion': (1.0, 64.0)}


def says_what_it_is(name: str) -> None:
  """SOURCE, FORMULA and COLUMNS are said; coefficients have starts within bounds, and published values."""
  law = lookup.module('law', name)
  for key in ('SOURCE', 'FORMULA'):
    assert isinstance(getattr(law, key, None), str), f'{key} is no text'
  for column in law.COLUMNS:
    assert column in columns.MEANING, f'COLUMNS: {column!r}{errors.nearest(column, columns.MEANING)}'
  for key, of in law.COEFFICIENTS.items():
    assert isinstance(of, coefficient.Coefficient), f'{key} is a {type(of).__name__}; wanted: a Coefficient'
    assert of.starts and all(of.low <= start <= of.high for start in of.starts), (
        f'{key} starts at {of.starts}; wanted: from {of.low} to {of.high}')
  for label, values in law.PUBLISHED.items():
    absent = law.COEFFICIENTS.keys() - values.keys()
    assert not absent, f'PUBLISHED {label} lacks {", ".join(sorted(absent))}'


def predicts(name: str) -> None:
  """Of coefficients [] it gives a loss f64[R] that is finite and above 0, of coefficients [n,1] f64[n,R]."""
  law, table = lookup.module('law', name), _table(name)
  points = _points(law)
  rows = [np.asarray(law.predict(point, table)) for point in points]
  for row in rows:
    assert row.shape == (R,) and np.all(np.isfinite(row) & (row > 0)), f'of {R} runs it predicts {row}'
  stacked = {key: np.array([[point[key]] for point in points]) for key in law.COEFFICIENTS}
  np.testing.assert_allclose(law.predict(stacked, table), rows, rtol=1e-9,
                             err_msg='coefficients [n,1] give other losses than one after the other')


def takes_complex_steps(name: str) -> None:
  """Its complex step is its derivative: a fit reads it, and every coefficient changes some loss."""
  law, table = lookup.module('law', name), _table(name)
  moved = set()
  for point, key in itertools.product(_points(law), law.COEFFICIENTS):
    h = 1e-6 * max(abs(point[key]), 1e-3)
    there, back = (law.predict(point | {key: point[key] + step}, table) for step in (h, -h))
    wanted = (there - back) / (2 * h)
    found = np.imag(law.predict(point | {key: point[key] + 1e-30j}, table)) / 1e-30
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max() + 1e-9,
                               err_msg=f'the complex step of {key} is not its derivative')
    moved |= {key} if np.any(found != 0) else set()
  assert moved == {*law.COEFFICIENTS}, f'{sorted(law.COEFFICIENTS.keys() - moved)} change no loss'


def tells_what_follows(name: str) -> None:
  """size gives finite f64[R], derived numbers by their names, and advice lines."""
  law, table = lookup.module('law', name), _table(name)
  size = np.asarray(law.size(table))
  assert size.shape == (R,) and np.all(np.isfinite(size)), f'size of {R} runs is {size}'
  for point in _points(law):
    for key, value in law.derived(point).items():
      assert isinstance(key, str) and not math.isnan(value), f'derived {key} is {value}'
  lines = law.advice(table)
  assert isinstance(lines, list) and all(isinstance(line, str) for line in lines), f'advice is {lines!r}'


def _table(name):
  """Dict column -> f64[R] of a law."""
  span = lambda column: SMALL.get(column, SPAN)
  return {column: np.roll(np.geomspace(*span(column), R), shift)
          for shift, column in enumerate(lookup.module('law', name).COLUMNS)}


def _points(law):
  """Some of the points from which a fit starts, dicts coefficient -> value."""
  return [{key: of.starts[(number + place) % len(of.starts)]
           for place, (key, of) in enumerate(law.COEFFICIENTS.items())} for number in range(STARTS)]
