"""The harness fails when it should: an unchecked kind, an unused array, a wrong value."""

import json

import cases
import numpy as np
import pytest


def write_case(folder, tolerance=None, **arrays):
  info = dict(method='toy', kind='double', name='one', config={}, notes='',
              tolerance=tolerance or dict(integers='exact', floats=dict(rtol=0.0, atol=0.1)))
  (folder / 'one.json').write_text(json.dumps(info))
  np.savez(folder / 'one.npz', **arrays)
  return cases.find(folder)[0]


def write_check(folder, module, body):
  (folder / f'{module}.py').write_text(f'def double(case):\n  {body}\n')


ARRAYS = dict(x=np.ones(2, np.float32), y=np.full(2, 2, np.float32))


def test_missing_kind_fails(tmp_path):
  header = write_case(tmp_path, **ARRAYS)
  with pytest.raises(AssertionError, match='defines double'):
    cases.run(header, here=tmp_path)


def test_right_check_passes_and_unused_array_fails(tmp_path):
  header = write_case(tmp_path, **ARRAYS)
  write_check(tmp_path, 'check_toy', "case.assert_close('y', 2 * case['x'])")
  cases.run(header, here=tmp_path)
  header = write_case(tmp_path, z=np.zeros(1), **ARRAYS)
  with pytest.raises(AssertionError, match='never used z'):
    cases.run(header, here=tmp_path)


def test_two_checks_of_a_kind_fail(tmp_path):
  header = write_case(tmp_path, **ARRAYS)
  write_check(tmp_path, 'check_toy_a', 'pass')
  write_check(tmp_path, 'check_toy_b', 'pass')
  with pytest.raises(AssertionError, match='twice'):
    cases.run(header, here=tmp_path)


def test_tolerance_is_that_of_the_file(tmp_path):
  case = cases.Case(write_case(tmp_path, n=np.arange(3), **ARRAYS).path)
  case.assert_close('y', [2.05, 2.05])
  with pytest.raises(AssertionError):
    case.assert_close('y', [2.2, 2.0])
  with pytest.raises(AssertionError):
    case.assert_close('n', [0, 1, 2.01])
  with pytest.raises(AssertionError, match='shape'):
    case.assert_close('y', 2.0)


def test_tolerance_relative_to_the_largest_entry(tmp_path):
  tolerance = dict(rtol=0.0, atol='1e-1 times max abs of the array')
  case = cases.Case(write_case(tmp_path, tolerance, y=np.array([0.0, 10.0])).path)
  assert case.limits('y') == (0.0, 1.0)


@pytest.mark.parametrize('stated', [
    dict(note='gradients rtol 1e-3'), dict(note='float32 reference; gradients may need rtol 1e-3; more'),
    dict(grads=dict(rtol=1e-3, atol='1e-1 times max abs of the array'), note='gradients rtol 1e-2')])
def test_tolerance_of_gradients_is_stated_apart(tmp_path, stated):
  tolerance = dict(rtol=0.0, atol='1e-1 times max abs of the array') | stated
  ten = np.array([0.0, 10.0])
  arrays = {'y': ten, 'grad_x': ten, 'g.a.weight': ten, 'gr.b.weight': ten, 'gate': ten}
  case = cases.Case(write_case(tmp_path, tolerance, **arrays).path)
  assert case.limits('y') == case.limits('gate') == (0.0, 1.0)
  assert case.limits('grad_x') == case.limits('g.a.weight') == case.limits('gr.b.weight') == (1e-3, 1.0)


def test_implemented_by_router_or_by_check(tmp_path):
  assert not cases.implemented('toy', tmp_path, tmp_path)
  write_check(tmp_path, 'check_toy_layer', 'pass')
  assert cases.implemented('toy', tmp_path, tmp_path)
  (tmp_path / 'other.py').write_text('')
  assert cases.implemented('other', tmp_path, tmp_path)


def test_an_option_that_the_check_does_not_know_fails_with_its_name_and_value(tmp_path):
  header = write_case(tmp_path, **ARRAYS)
  case = cases.Case(header.path)
  case.config = dict(act='gelu', scaled=True, k=1)
  assert case.option('act', dict(gelu='tanh')) == 'tanh' and case.option('absent', {None: 3}) == 3
  assert case.option('scaled', {False: 0, True: 1}) == 1 and case.option('other', {2: 5}, 2) == 5
  with pytest.raises(AssertionError, match="cannot translate act='gelu' .it knows: 'relu'"):
    case.option('act', dict(relu='relu'))
  with pytest.raises(AssertionError, match='k=1'):
    case.option('k', {True: 0})                                      # 1 is not True
