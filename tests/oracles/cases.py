"""Recorded reference cases: found, loaded, matched with their checks.

A case is a pair NAME.json + NAME.npz. The check of a case of kind K of method M is the
function K(case) in `check_M.py` or in any `check_M_*.py` of this folder: the file name
is the registry. A check compares through `case.assert_close` at the case's own
tolerance, and it must use every array of the file, or say why it leaves one out.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEFAULT = ROOT / 'tests' / 'data' / 'oracles'


class Case:
  """One case: `config`, `notes`, arrays by `case[name]`, and comparison at its tolerance.

  Attributes:
    method, kind, name: from the json.
    config:             dict of the reference call's settings.
    info:               the whole json.
    tolerance:          as in the json.
  """

  def __init__(self, path):
    self.path = pathlib.Path(path)
    self.info = json.loads(self.path.read_text())
    self.method, self.kind, self.name = (self.info[key] for key in ('method', 'kind', 'name'))
    self.config = self.info.get('config', {})
    self.notes = self.info.get('notes', '')
    self.tolerance = self.info.get('tolerance', {})
    if isinstance(self.tolerance, str):                              # 'recorded exact; floats 1e-5'
      numbers = [float(number) for number in re.findall(r'[0-9.]+e-[0-9]+', self.tolerance)[:1]]
      if 'of the largest absolute entry' in self.tolerance:
        self.tolerance = dict(atol=f'{numbers[0]} times max abs of the array')
      else:
        self.tolerance = {key: number for number in numbers for key in ('rtol', 'atol')}
    of_gradients = re.search('gradients (?:may need )?rtol ([0-9.e-]+)', self.tolerance.get('note', ''))
    if of_gradients and 'grads' not in self.tolerance:
      self.tolerance = self.tolerance | dict(grads=self.tolerance | dict(rtol=float(of_gradients[1])))
    with np.load(self.path.with_suffix('.npz'), allow_pickle=False) as arrays:
      self._arrays = dict(arrays)
    self._used = set()

  def __contains__(self, name):
    return name in self._arrays

  def __getitem__(self, name):
    """Returns array `name`, which from then on counts as used."""
    if name not in self._arrays:
      raise KeyError(f'{self} has no array {name!r}; it has: {", ".join(self._arrays)}')
    self._used.add(name)
    return self._arrays[name]

  def __str__(self):
    return f'{self.method}/{self.name}'

  def option(self, key, table, default=None):
    """Returns what `table` makes of the setting `key` of the reference call, or of `default` without it.

    A value that is not in the table fails: the check does not know what the reference does with it.
    """
    value = self.config.get(key, default)
    known = [name for name in table if name == value and isinstance(name, bool) == isinstance(value, bool)]
    assert known, (f'{self}: the check cannot translate {key}={value!r} '
                   f'(it knows: {", ".join(map(repr, table))})')
    return table[known[0]]

  def names(self, prefix=''):
    """Returns the sorted names of the arrays that begin with `prefix`."""
    return sorted(name for name in self._arrays if name.startswith(prefix))

  def group(self, prefix):
    """Returns dict name without `prefix` -> array; all of them count as used."""
    return {name[len(prefix):]: self[name] for name in self.names(prefix)}

  def ignore(self, name, why):
    """Leaves array `name` uncompared; `why` is for the reader of the check."""
    assert name in self._arrays and why
    self._used.add(name)

  def unused(self):
    """Returns the sorted names of the arrays that no one has read or compared."""
    return sorted(set(self._arrays) - self._used)

  def limits(self, name):
    """Returns (rtol, atol) that the json states for array `name`; (0, 0) for integers."""
    expected = self._arrays[name]
    if not np.issubdtype(expected.dtype, np.inexact):
      return 0.0, 0.0
    kind = 'grads' if name.startswith(('grad', 'g.', 'gr.')) else 'logits'
    for key in (name, kind, 'floats'):
      if isinstance(self.tolerance.get(key), dict):
        return self._numbers(self.tolerance[key], expected)
    return self._numbers(self.tolerance, expected)

  def _numbers(self, stated, expected):
    known = [key for key in ('rtol', 'atol') if key in stated]
    if not known:
      raise AssertionError(f'{self} states no tolerance: {self.tolerance}')
    rtol, atol = (stated.get(key, 0.0) for key in ('rtol', 'atol'))
    if isinstance(atol, str):                                        # '1e-5 times max abs of the array'
      factor = re.fullmatch(r'([0-9.e+-]+) times max abs of the array', atol).group(1)
      atol = float(factor) * float(np.abs(expected).max())
    return float(rtol), float(atol)

  def assert_close(self, name, value, like=None):
    """Raises AssertionError unless `value` equals array `name` at the stated tolerance.

    Shapes must agree. Integers are compared exactly. `like` names another array whose
    tolerance serves where the json states none for this one.
    """
    expected, value = self[name], np.asarray(value)
    assert value.shape == expected.shape, f'{self} {name}: shape {value.shape}, expected {expected.shape}'
    rtol, atol = self.limits(like or name)
    if rtol == atol == 0.0:
      np.testing.assert_array_equal(value, expected, err_msg=f'{self} {name}')
    else:
      np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=f'{self} {name}')


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of a case before its arrays are read."""
  path: pathlib.Path
  method: str
  kind: str
  name: str


def find(folder):
  """Returns the Headers of all cases under `folder`, sorted by path."""
  headers = []
  for path in sorted(pathlib.Path(folder).rglob('*.json')):
    if path.with_suffix('.npz').exists():
      info = json.loads(path.read_text())
      headers.append(Header(path, info['method'], info['kind'], info['name']))
  return headers


def check_files(method, here=HERE):
  """Returns the files that hold checks of `method`: check_<method>.py and check_<method>_*.py."""
  return sorted({*here.glob(f'check_{method}.py'), *here.glob(f'check_{method}_*.py')})


def implemented(method, here=HERE, routers=ROOT / 'stmoe' / 'routers'):
  """Returns whether `method` has a router or a check file: then every kind needs a check."""
  return (routers / f'{method}.py').exists() or bool(check_files(method, here))


def checks(method, here=HERE):
  """Returns dict kind -> check function of `method`; public functions defined in its files."""
  found = {}
  for path in check_files(method, here):
    for name, value in vars(load(path)).items():
      if callable(value) and not name.startswith('_') and getattr(value, '__module__', '') == path.stem:
        assert name not in found, f'{name} of {method} is checked twice, second in {path.name}'
        found[name] = value
  return found


def load(path):
  """Returns the module in file `path`; siblings import each other by their plain names."""
  if str(path.parent) not in sys.path:
    sys.path.insert(0, str(path.parent))
  loaded = sys.modules.get(path.stem)
  if loaded is None or pathlib.Path(loaded.__file__) != path:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
  return sys.modules[path.stem]


def run(header, here=HERE):
  """Runs the check of a case; raises AssertionError if there is none or it leaves arrays unused."""
  check = checks(header.method, here).get(header.kind)
  assert check is not None, (f'{header.method} is implemented, but no check_{header.method}*.py defines '
                             f'{header.kind}(case), which {header.name} needs')
  case = Case(header.path)
  check(case)
  assert not case.unused(), f'{case}: the check never used {", ".join(case.unused())}'
