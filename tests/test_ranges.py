"""What a field may hold: what is taken, what is refused and in which words, and what a user types for it."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import ranges as r
from stmoe import value_ranges
from stmoe.core.units import activations

LOSS = r.Row(r.NonNegative, r.Choice('mean', 'sum'))


@pytest.mark.parametrize('kind, right, wrong', [
    (r.Count, [1, 2**31 - 1], [0, -1, 2**31, 1.0, True, '1', None, (1,)]),
    (r.Natural, [0, 7], [-1, 0.0, False]),
    (r.Devices, [-1, 1, 8], [0, -2]),
    (r.Seed, [0, 2**32, 2**64 - 1], [-1, 2**64, 1.5]),
    (r.Any, [0, -1e30, 3], [math.nan, math.inf, 1e39, 10**40, True, '1']),
    (r.Positive, [1e-30, 1, 1e30], [0, -1.0, 1e-39, math.nan]),
    (r.NonNegative, [0, 0.0, 1e30], [-1e-9, math.inf]),
    (r.Share, [0, 1, 0.5], [-0.1, 1.1, 2]),
    (r.Below1, [0.0, 0.999], [1, 1.0, 1 - 1e-9, -0.1]),               # 1 - 1e-9 is 1 in float32
    (r.Between01, [0.5], [0.0, 1.0]),
    (r.PartOf1, [1.0, 1e-3], [0.0, 1.5]),
    (r.Flag, [True, False], [0, 1, 'true', None]),
    (r.Text, ['', 'a'], [1, None]),
    (r.Choice('a', 'b'), ['a'], ['c', '', 1, None, ['a']]),
    (r.Count | None, [None, 3], [0, 'None']),
    (r.Factors, [2.0, None, (1.25, None), (0.0, 2)], [-1.0, (1.0,), (1.0, -1.0), (math.nan, 1.0), 'a', ()]),
    (r.Many(r.Count), [(), (1, 2), [3]], [3, (0,), ('a',)]),
    (r.Pattern, [(('dm', 2),), [['d', 1], ['m', 10]]], [(), (('', 1),), (('d', 0),), (('d', 1.0),), 'dm', 0]),
    (r.Shares, [(), ('a', 'b'), (('a', 0.5),), dict(a=1)], [(0.0, 0.0), (('a', 0.0),), (('a', -1),), 'a', 3]),
    (LOSS, [(0.1, 'mean'), [0, 'sum']], [(-1, 'mean'), (1, 'max'), (), 0.1, ('mean', 0.1), (1, 'sum', 2)]),
    (r.Natural | r.Ids, [0, (2, 9), [1]], [-1, (), (1, -1), 'a']),
])
def test_what_is_taken_and_what_is_refused(kind, right, wrong):
  for value in right:
    kind.check('a.b', value)
  for value in wrong:
    with pytest.raises(errors.UserError, match=r'^a\.b[=.].*expected '):
      kind.check('a.b', value)


@pytest.mark.parametrize('kind, text, value', [
    (r.Count, '7', 7), (r.Any, '7', 7.0), (r.Any, '-1e-3', -1e-3), (r.Flag, 'False', False),
    (r.Flag, '1', True),
    (r.Count | None, 'None', None), (r.Count | None, '7', 7), (r.Text, 'None', 'None'),
    (r.Factors, '2', (2.0, 2.0)), (r.Factors, '(1,2)', (1.0, 2.0)), (r.Factors, '1,None', (1.0, None)),
    (r.Factors | None, 'None', None),
    (r.Many(r.Text), 'a.txt,b.txt', ('a.txt', 'b.txt')), (r.Many(r.Text), "('a','b')", ('a', 'b')),
    (r.Many(r.Text), '1984', ('1984',)), (r.Many(r.Text), '[1].txt', ('[1].txt',)),
    (r.Many(r.Text), '()', ()),
    (r.Many(r.Share), '0.5,1', (0.5, 1.0)), (r.Pattern, "(('dm',2),)", (('dm', 2),)),
    (LOSS, "(1,'sum')", (1.0, 'sum')), (LOSS, '0.1,mean', (0.1, 'mean')),
    (r.Shares, '', ()), (r.Shares, 'a,b', ('a', 'b')), (r.Shares, "(('a',1.0),)", (('a', 1.0),)),
])
def test_what_a_user_types(kind, text, value):
  found = kind.typed('a.b', text)
  assert found == value and type(found) is type(value) and repr(found) == repr(value)


@pytest.mark.parametrize('kind, text, said', [
    (r.Count, '0', 'a.b=0: expected a whole number of at least 1; nearest: 1'),
    (r.Count, 'many', 'a.b=many: expected a whole number of at least 1'),
    (r.Above0('x=y'), '0', 'a.b=0.0: expected a number above 0; nearest: x=y'),
    (r.Positive, '0', 'a.b=0.0: expected a number above 0'),
    (r.Seed, '18446744073709551616', 'nearest: 18446744073709551615'),
    (r.Below1, '-1', 'a.b=-1.0: expected a number of at least 0 and below 1; nearest: 0.0'),
    (r.Positive, 'nan', 'a.b=nan: expected a number above 0'),
    (r.Activation, 'GELU', 'nearest: gelu'), (r.Count | None, '0', 'at least 1 or None; nearest: 1'),
    (r.Factors, '(nan,nan)', 'of training and of evaluation'), (r.Count, '9' * 5000, '99...: expected'),
])
def test_words_of_a_refusal(kind, text, said):
  with pytest.raises(errors.UserError) as error:
    kind.typed('a.b', text)
  assert said in str(error.value) and len(str(error.value)) < 400


def test_one_value_for_a_pair_becomes_two():
  assert r.Factors.check('x', 2.0) == (2.0, 2.0) and r.Factors.check('x', None) == (None, None)
  assert (r.Factors | None).check('x', None) is None


@pytest.mark.parametrize('share, number, rounded', [
    (0.07, 100, 7), (0.14, 50, 7), (0.28, 100, 28), (0.29, 100, 29), (0.2, 64, 13), (1e-9, 1, 1), (0.0, 9, 0),
    (1.0, 9, 9)])
def test_a_share_of_a_number_is_rounded_up_but_not_for_the_rounding_of_floats(share, number, rounded):
  assert r.rounded_up(share * number) == rounded


def test_the_ends_are_those_of_float32():
  one = np.float32(1)
  assert np.float32(r.Below1.high) < one and np.nextafter(np.float32(r.Below1.high), one) == one
  assert np.float32(value_ranges.LEAST) > 0 and np.isfinite(np.float32(value_ranges.MOST))
  assert not r.Positive.holds(value_ranges.LEAST / 2) and not r.Any.holds(float(np.finfo(np.float32).max) * 2)


def test_activations_are_elementwise_functions():
  x = jnp.linspace(-3.0, 3.0, 6).reshape(2, 3)
  for name in r.Activation.names:
    shape = jax.eval_shape(activations.named(name), x)
    assert shape.shape == x.shape, name
  for name in r.Dtype.names:
    assert jnp.issubdtype(jnp.dtype(name), jnp.floating)


def test_a_range_is_the_type_of_an_argument():
  assert r.Count('3') == 3
  for text in ('0', 'x', ''):
    with pytest.raises(argparse.ArgumentTypeError, match='expected a whole number of at least 1'):
      r.Count(text)
