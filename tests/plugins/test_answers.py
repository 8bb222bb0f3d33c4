"""Mistakes in the code of plugins, which are lines that name the file."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import plugins
from stmoe.cli import main
from stmoe.conform import execution
from stmoe.conform import strategy as of_strategies
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.decode import generate
from stmoe.train import optimizers
from stmoe.train import schedules
from stmoe.train import taskscore
from tests.plugins import files


def test_an_error_of_a_plugin_that_another_imports_names_its_own_line(tmp_path):
  path = plugins.add(files.write(tmp_path, files.SOURCES['router'] + '1 / 0\n')).path
  other = files.SOURCES['layer'].replace('Mine', 'Other')
  plugins.add(files.write(tmp_path, 'from stmoe.routers import mine\n' + other, 'other'))
  with pytest.raises(errors.UserError, match=f'^{path}, line .*: ZeroDivisionError'):
    lookup.module('layer', 'other')


def test_a_plugin_that_does_not_run_is_a_line(tmp_path):
  source = files.SOURCES['layer'].replace('import contract', 'import assignment')
  path = plugins.add(files.write(tmp_path, source)).path
  with pytest.raises(errors.UserError) as error:
    lookup.module('layer', 'mine')
  assert str(error.value) == f"{path}, line 4: NameError: name 'contract' is not defined"


WRONG = {
    'schedule': ('def mine(step, *, peak: float = 1.0, total_steps):\n  return None\n',
                 'schedule mine returned NoneType; wanted: float32'),
    'optimizer': ('def mine(names, shapes, *, b: float = 1.0):\n  return names\n',
                  'optimizer mine returned dict; wanted: optimizers.Optimizer'),
    'update': ('from stmoe.train import optimizers\n\n\ndef mine(names, shapes, *, b: float = 1.0):\n'
               '  update = lambda grads, state, params, rate, moves=True: params\n'
               '  return optimizers.Optimizer(lambda params: {}, update, {})\n',
               'optimizer mine has an update that returns dict; wanted: (params, state)'),
    'moves': ('from stmoe.train import optimizers\n\n\ndef mine(names, shapes, *, b: float = 1.0):\n'
              '  update = lambda grads, state, params, rate: (params, state)\n'
              '  return optimizers.Optimizer(lambda params: {}, update, {})\n',
              'optimizer mine has an update with too many positional arguments; wanted: (grads, state,'),
    'names': ('from stmoe.train import optimizers\n\n\ndef mine(names, shapes, *, b: float = 1.0):\n'
              '  update = lambda grads, state, params, rate, moves=True: (params, state)\n'
              '  return optimizers.Optimizer(lambda params: dict(mu=params), update, names)\n',
              'optimizer mine has names of w; wanted: logical axes of its state, a tree like it: mu'),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_function_that_returns_something_else_names_its_file(case, tmp_path):
  source, says = WRONG[case]
  path = plugins.add(files.write(tmp_path, source)).path
  with pytest.raises(errors.UserError, match=re.escape(f'{path}: {says}')):
    if case == 'schedule':
      schedules.of(ml_collections.ConfigDict(dict(name='mine')), 10)
    else:
      optimizers.of(dict(name='mine'), dict(w=('embed',)), dict(w=jax.ShapeDtypeStruct((2,), 'float32')))


@pytest.mark.parametrize('body, says', [
    ('x', ': it returned float32[1,2,4]; wanted: (y, aux, carry)'),
    ('(x.absent, None, carry)', ', line 9: DynamicJaxprTracer has no attribute absent'),
    ('(x, None, 1 / self.half)', ', line 9: division by zero'), ('(x, self.absent, carry)', ', line 9: '),
])
def test_a_mistake_of_a_layer_within_another_one_names_its_file(body, says, tmp_path):
  source = f"""from flax import nnx


class Mine(nnx.Module):
  def __init__(self, d_model, *, half: int = 0, rngs):
    self.half = half

  def __call__(self, x, ctx, carry):
    return {body}
"""
  path = plugins.add(files.write(tmp_path, source)).path
  layer = lookup.recipe('layer', dict(name='shared', d_ff=4, inner=dict(name='mine')))(4, rngs=nnx.Rngs(0))
  x = jnp.ones((1, 2, 4))
  with pytest.raises(errors.UserError, match=re.escape(f'{path}{says}')):
    jax.eval_shape(lambda x: checked.answer(layer, x, contract.Context.of(x), {}), x)


def test_an_error_in_the_code_of_a_plugin_is_a_line_of_any_command(tmp_path, capsys, monkeypatch):
  path = plugins.add(files.write(tmp_path, 'def score(examples, predictions):\n  return 1 / 0\n')).path
  monkeypatch.setattr(main, '_run', lambda argv: lookup.module('metric', 'mine').score([], []))
  assert main.main(['show']) == 2
  assert capsys.readouterr().err == f'stmoe: {path}, line 2: ZeroDivisionError: division by zero\n'
  with pytest.raises(ZeroDivisionError):
    main.main(['show', '--debug'])


@pytest.mark.parametrize('given, wanted', [(1.0, 'float'), (dict(mine='high'), 'dict')])
def test_a_metric_that_gives_no_numbers_names_its_file(given, wanted, tmp_path):
  path = plugins.add(files.write(tmp_path, f'def score(examples, predictions):\n  return {given!r}\n')).path
  with pytest.raises(errors.UserError, match=f'{path}: score returned {wanted}; wanted: dict name -> number'):
    taskscore.score(['mine'], [dict(references=['a'])], ['b'])


STRATEGY = """import jax.numpy as jnp


class Mine:
  def check(self, model):
    pass

  def __call__(self, model, batch, length, key):
    return jnp.ones((len(batch['decoder_positions']), length), jnp.int32)
"""


def test_a_strategy_need_not_know_what_ends_a_text(tmp_path):
  assert plugins.add(files.write(tmp_path, STRATEGY)).kinds == ('strategy',)
  assert generate.ending(dict(name='mine'), None, None) == dict(name='mine')
  assert not of_strategies._ends('mine') and of_strategies._ends('sample')


def test_an_executor_that_returns_another_shape_names_its_file(tmp_path):
  path = plugins.add(files.write(tmp_path, 'def execute(x, a, experts, key=None):\n  return x[0]\n')).path
  x, a = execution.activations(), execution.made('random', 1, 4)
  run = banks.opening(lookup.executor('mine'))
  says = rf'{path}: execute returned float32\[16,8\]; wanted: float32\[2,16,'
  with pytest.raises(errors.UserError, match=says):
    jax.eval_shape(run, x, a, execution.bank('mlp'))
