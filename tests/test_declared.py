"""What files declare is read from their text, and is what importing them would say."""

import inspect
import subprocess
import sys
import types

import pytest

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import ranges

# Kinds of modules with no class, or with one that no configuration gives its fields.
PLAIN = {'tasks', 'metric', 'family', 'packing', 'positions', 'network', 'writer', 'peer', 'piece', 'law',
         'figure'}
KINDS = [kind for kind in lookup.PACKAGES if kind not in PLAIN | set(lookup.FUNCTIONS)]
NAMED = [(kind, name) for kind in KINDS for name in lookup.available(kind)]


@pytest.mark.parametrize('kind, name', NAMED)
def test_fields_are_those_of_the_class(kind, name):
  """Names, defaults and ranges, of every class that a configuration can name."""
  found = lookup.fields(kind, name)
  known = inspect.signature(lookup.constructor(kind, name).__init__).parameters
  assert list(found) == [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY and n != 'rngs']
  for field, one in found.items():
    annotation, default = known[field].annotation, known[field].default
    assert (one.range is None) == (annotation is inspect.Parameter.empty), field
    assert one.range is None or one.range.text == annotation.text, field
    assert (one.default is declared.REQUIRED) == (default is inspect.Parameter.empty), field
    assert one.default in (declared.REQUIRED, declared.COMPUTED) or one.default == default, field


def test_a_range_may_begin_below_0():
  table = lookup.fields('router', 'remap')['table'].range
  assert table.holds((0, -1)) and not table.holds((0, -2))


@pytest.mark.parametrize('kind, name', NAMED)
def test_defaults_are_within_their_ranges(kind, name):
  for field, one in lookup.fields(kind, name).items():
    if one.range is not None and one.default not in (declared.REQUIRED, declared.COMPUTED):
      one.range.check(field, one.default)


# What the code gives, by kind: these parameters are no fields of a configuration, and have no range.
GIVEN = {
    'model': {'blocks'}, 'experts': {'num_experts'}, 'head': {'length'}, 'around': {'block'},
    'attention': {'num_heads', 'head_dim', 'num_kv_heads', 'dropout_rate', 'init_scale'},
    'router': {'num_virtual', 'num_zero'}, 'strategy': {'eos_id'},
}


@pytest.mark.parametrize('kind, name', NAMED)
def test_every_field_has_a_range(kind, name):
  bare = {field for field, one in lookup.fields(kind, name).items() if one.range is None}
  assert bare <= GIVEN.get(kind, set()), f'give {name} ranges, as stmoe/ranges.py says'


@pytest.mark.parametrize('module, given', [
    ('stmoe.train.optimizers', set()), ('stmoe.train.schedules', {'total_steps'}),
    *((f'stmoe.core.execute.{name}', set()) for name in lookup.available('executor')),
    *((f'stmoe.surgery.{name}', set()) for name in lookup.available('surgery')),
    *((f'stmoe.sweep.launchers.{name}', set()) for name in lookup.available('launcher'))])
def test_every_field_of_a_function_has_a_range(module, given):
  for fields in declared.of_functions(module).values():
    assert {field for field, one in fields.items() if one.range is None} <= given
    for field, one in fields.items():
      if one.range is not None and one.default is not declared.REQUIRED:
        one.range.check(field, one.default)


def test_what_may_stand_where_is_told_by_how_it_is_called():
  """Helpers and layers of other kinds in the same folder are no choice."""
  layers = lookup.available('layer')
  assert {'dense', 'moe', 'momentum', 'shared'} <= set(layers)
  assert not {'rotary', 'attention', 'stack', 'norm', 'span_head', 'cache'} & set(layers)
  assert {'attention', 'latent_attention', 'switch_head'} <= set(lookup.available('attention'))
  assert lookup.available('head') == ['span_head', 'span_mixture']


def write(tmp_path, monkeypatch, text):
  """The fields of a class in a file of its own."""
  (tmp_path / 'mine.py').write_text(text)
  monkeypatch.setitem(sys.modules, 'stmoe.probes', types.SimpleNamespace(__path__=[str(tmp_path)]))
  return declared.of_class('stmoe.probes', 'mine')


def test_an_annotation_is_ranges_tables_and_constants(tmp_path, monkeypatch):
  fields = write(tmp_path, monkeypatch, '''
from stmoe import ranges

RULES = {'sign': 1, 'size': 2}
SIDES: tuple = ('left', 'right')

class Mine:
  def __init__(self, d_model, *, k: ranges.Count | None = None, rule: ranges.Choice(*RULES, *SIDES),
               free=3, made=RULES, at: ranges.Many(ranges.Share, least=1) = (0.5,), rngs):
    pass
''')
  assert fields['k'].range.holds(None) and fields['k'].range.holds(2) and not fields['k'].range.holds(0)
  assert fields['rule'].range.names == ('sign', 'size', 'left', 'right')
  assert fields['rule'].default is declared.REQUIRED and fields['made'].default is declared.COMPUTED
  assert fields['free'] == declared.Field(None, 3) and list(fields)[-1] == 'at'
  assert fields['at'].range.least == 1 and isinstance(fields['at'].range, ranges.Many)


def test_an_annotation_may_be_a_type_of_python(tmp_path, monkeypatch):
  fields = write(tmp_path, monkeypatch, '''
class Mine:
  def __init__(self, *, a: float = 1.0, b: int = 2, c: bool = True, d: str | None = None):
    pass
''')
  read = {name: field.range.read(text) for (name, field), text in zip(fields.items(), '3 3 false x'.split())}
  assert read == dict(a=3.0, b=3, c=False, d='x') and isinstance(read['a'], float)
  assert not fields['b'].range.holds(0.5) and not fields['c'].range.holds(1) and fields['d'].range.holds(None)


@pytest.mark.parametrize('text, base', [
    ('from stmoe.routers import st_moe', 'st_moe.STMoE'),
    ('from stmoe.routers.st_moe import STMoE', 'STMoE'),
    ('from stmoe.routers import st_moe\n\nclass Base(st_moe.STMoE):\n  pass', 'Base')])
def test_what_is_inherited_is_declared_too(tmp_path, monkeypatch, text, base):
  """From a class of this project, however it is imported, and from one of the same file."""
  assert write(tmp_path, monkeypatch, f'{text}\n\nclass Mine({base}):\n  pass\n') == (
      lookup.fields('router', 'st_moe'))


@pytest.mark.parametrize('annotation', ['list[int]', 'ranges.Count + 1', 'ranges.Choice(*NO)',
                                        '[ranges.Count]', 'ranges.Counts', 'ranges.Many', "'int'", 'int + 1'])
def test_another_annotation_is_a_line(tmp_path, monkeypatch, annotation):
  with pytest.raises(errors.UserError, match='mine.py, line 4: a: .* is no range; wanted: .*float'):
    write(tmp_path, monkeypatch, 'from stmoe import ranges\n\nclass Mine:\n'
          f'  def __init__(self, *, a: {annotation} = 1):\n    pass\n')


def test_checking_a_configuration_imports_no_jax():
  code = ("import sys; from stmoe import experiment; experiment.load('lm/stdlib:method=switch,smoke', "
          "['blocks.m.router.capacity_factor=2', 'optimizer.b1=0.8']); "
          "print(sorted({'jax', 'flax', 'tensorflow'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'
