"""The argument of an experiment is typed by its declared defaults."""

import pytest

from stmoe import errors
from stmoe.configs import arguments

SPEC = dict(smoke=False, size='base', experts=64, rate=0.1, layers=(1, 2))


def test_defaults_without_an_argument():
  assert vars(arguments.parse('', **SPEC)) == SPEC


def test_values_take_the_type_of_their_default():
  found = arguments.parse('smoke,size=11b,experts=8,rate=1', **SPEC)
  assert (found.smoke, found.size, found.experts, found.rate) == (True, '11b', 8, 1.0)
  assert type(found.rate) is float and found.layers == (1, 2)
  assert arguments.parse('smoke=false', smoke=True).smoke is False


@pytest.mark.parametrize('arg, words', [
    ('smok', ["'smok'", 'nearest: smoke']),
    ('experts=many', ['experts=many', 'an int']),
    ('size', ["'size' needs a value", 'size=base']),
    ('smoke,smoke', ["'smoke' is given twice"]),
    ('smoke=maybe', ['smoke=maybe', 'a bool']),
])
def test_mistake_is_named(arg, words):
  with pytest.raises(errors.UserError) as error:
    arguments.parse(arg, **SPEC)
  assert all(word in str(error.value) for word in words)
