"""Text that a user typed becomes a value of its field's type, or one line that says what was expected."""

import pytest

from stmoe import errors
from stmoe import parsing


@pytest.mark.parametrize('text, current, value', [
    ('7', 1, 7),
    ('-3', 1, -3),
    ('1', 0.5, 1.0),
    ('1e-3', 0.5, 1e-3),
    ('False', True, False),
    ('true', False, True),
    ('3', 'adam', '3'),
    ('a,b', 'adam', 'a,b'),
    ('(1,2)', (0,), (1, 2)),
    ('1,2', (0, 0), (1, 2)),
    ('5', (0,), (5,)),
    ('(1, 2)', (1.25, 2.0), (1.0, 2.0)),
    ("(0.1,'sum')", (0.01, 'mean'), (0.1, 'sum')),
    ("(('d',1),('m',3))", (('dm', 2),), (('d', 1), ('m', 3))),
    ('a.txt,b/c.gz', (), ('a.txt', 'b/c.gz')),
    ('/tmp/a.txt', (), ('/tmp/a.txt',)),
    ('1984', (), ('1984',)),
    ('1,a[2].txt', (), ('1', 'a[2].txt')),
    ('[1].txt,b', (), ('[1].txt', 'b')),
    ('123,x', ('a.txt',), ('123', 'x')),
    ("('a b.txt', 'c')", ('a.txt',), ('a b.txt', 'c')),
    ('()', (1, 2), ()),
    ('[1,2]', [0], [1, 2]),
    ('128', None, 128),
    ('none of these', None, 'none of these'),
    ('None', None, None),
])
def test_value_has_the_type_of_its_field(text, current, value):
  found = parsing.typed('field', text, type(current), current)
  assert found == value and type(found) is type(value)
  if isinstance(value, tuple):
    assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize('text, current, expected', [
    ('1.5', 0, 'an int'),
    ('True', 0, 'an int'),
    ('', 0, 'an int'),
    ('fast', 0.1, 'a float'),
    ('yes', True, 'a bool'),
    ("('a','mean')", (0.01, 'mean'), 'a tuple'),
    ('(1,', (0, 0), 'a tuple'),
    ('1,2', (('dm', 2),), 'a tuple'),
    ('__import__("os").getcwd()', (1,), 'a tuple'),
])
def test_mistyped_value_names_field_value_and_type(text, current, expected):
  with pytest.raises(errors.UserError) as error:
    parsing.typed('config.x', text, type(current), current)
  assert f'config.x={text}: expected {expected}' in str(error.value) and repr(current) in str(error.value)


def test_nothing_is_evaluated():
  """Code stays text where a field holds None: it is neither run nor an error."""
  assert parsing.typed('x', '__import__("os")', type(None), None) == '__import__("os")'
