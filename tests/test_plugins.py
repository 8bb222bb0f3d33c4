"""Files outside of the package: what they are told by, where they are found, and what checks say of them."""

import ast
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import pytest

from stmoe import conform
from stmoe import declared
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import plugins
from stmoe.cli import check
from stmoe.cli import main
from stmoe.conform import execution
from stmoe.conform import router as of_routers
from stmoe.conform import strategy as of_strategies
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.data.text import tasks
from stmoe.decode import generate
from stmoe.plugins import kinds
from stmoe.runs import plugged
from stmoe.train import optimizers
from stmoe.train import schedules
from stmoe.train import taskscore
from tests.docs import pages

SIGMOID = pages.titled('docs/router.md', 'stmoe/routers/sigmoid.py')
TASKS = '''"""Counting."""
from stmoe.data.text import tasks


def counting(files=()):
  """Returns the task of numbers that are counted; it takes no files."""
  tasks.no_files('counting', files)
  rows = lambda at: [(str(n), ' '.join(map(str, range(n, n + 40)))) for n in range(at, at + 30)]
  return tasks.local('counting', dict(train=rows(0), validation=rows(500)), {})


TASKS = dict(counting=counting)
'''
SOURCES = {
    'router': SIGMOID.replace('class Sigmoid', 'class Mine'),
    'layer': 'from stmoe.core import contract\n\nclass Mine:\n'
             '  def __call__(self, x, ctx, carry) -> contract.Answer:\n    return x, None, carry\n',
    'experts': 'class Mine:\n  def __call__(self, rows, key=None):\n    return rows\n',
    'executor': 'from stmoe import ranges\n\n'
                'def execute(x, a, experts, key=None, *, parts: ranges.Count = 1):\n  return x\n',
    'target': 'class Mine:\n  def loss(self): pass\n  def judge(self): pass\n  def metrics(self): pass\n',
    'tasks': TASKS,
}


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
  """No plugin is there before a test, and none after it."""
  monkeypatch.setenv(plugins.VARIABLE, '')
  before = set(sys.modules)
  yield
  for name in set(sys.modules) - before:
    if name.endswith(('.mine', '.other', '.held')):
      del sys.modules[name]


def write(folder, source, name='mine'):
  path = folder / f'{name}.py'
  path.write_text(source, encoding='utf-8')
  return path


def test_a_plugin_named_without_its_ending_or_in_place_of_an_experiment_says_what_was_meant(tmp_path):
  path = write(tmp_path, SOURCES['router'])
  with pytest.raises(errors.UserError, match=f'called NAME.py; nearest: --plugin {path}$'):
    plugins.add(path.with_suffix(''))
  with pytest.raises(errors.UserError, match=f"it holds the router 'mine': stmoe show mine --plugin {path}"):
    experiment.load(str(path))


# Files of the project that say no more of what they are than files of another kind, and so need a line.
SAID = {'factor_llm', 'span_head', 'span_mixture', 'multitask'}


@pytest.mark.parametrize('kind', lookup.PACKAGES)
def test_each_file_of_the_project_would_be_told_as_a_plugin(kind):
  for name in lookup.available(kind):
    path, tree = declared.file(lookup.PACKAGES[kind], name), declared.tree(lookup.PACKAGES[kind], name)
    if name in SAID and not kinds._kind_of_class(path, tree, None) == kind:
      tree = ast.Module([*tree.body, *ast.parse(f'PLUGIN = {kind!r}').body], [])
    assert kinds.told(path, tree) == (kind,)


@pytest.mark.parametrize('kind', SOURCES)
def test_a_file_is_told_by_its_text_and_found_by_its_name(kind, tmp_path):
  plugin = plugins.add(write(tmp_path, SOURCES[kind]))
  assert (plugin.kinds, plugin.name) == ((kind,), 'mine')
  assert 'mine' in lookup.available(kind)
  assert lookup.module(kind, 'mine').__file__ == str(plugin.path)
  others = [other for other in lookup.PACKAGES if other != kind and 'mine' in lookup.available(other)]
  assert not others


def test_a_file_may_hold_several_kinds_which_are_one_module(tmp_path):
  score = 'def score(examples, predictions):\n  return dict(mine=1.0)\n'
  plugin = plugins.add(write(tmp_path, SOURCES['router'] + score))
  assert plugin.kinds == ('metric', 'router') and plugin.holds == "the metric and the router 'mine'"
  assert lookup.module('metric', 'mine') is lookup.module('router', 'mine')
  assert [fact['kind'] for fact in plugged.facts()] == ['metric', 'router']
  plugins.add(write(tmp_path, SOURCES['router'] + score.replace('1.0', '2.0')))
  assert lookup.module('metric', 'mine').score([], []) == dict(mine=2.0)
  assert not lookup.available('metric').count('mine') > 1
  user = 'from stmoe.metrics import mine\nfrom stmoe.routers import mine as same\n'
  plugins.add(write(tmp_path, user + SOURCES['layer'].replace('Mine', 'Other'), 'other'))
  plugins.add(write(tmp_path, SOURCES['router'] + score))
  assert lookup.module('layer', 'other').mine is lookup.module('layer', 'other').same


def test_a_line_says_what_a_class_is_where_its_text_leaves_that_open(tmp_path):
  assert plugins.add(write(tmp_path, "PLUGIN = 'head'\n" + SOURCES['layer'])).kinds == ('head',)
  with pytest.raises(errors.UserError, match="mine.py, line 1: PLUGIN='heads'; nearest: head "):
    plugins.add(write(tmp_path, "PLUGIN = 'heads'\n" + SOURCES['layer']))


def test_plugins_import_one_another_from_the_folders_of_their_kinds(tmp_path):
  plugins.add(write(tmp_path, SOURCES['router']))
  user = 'from stmoe.routers import mine\n' + SOURCES['layer'].replace('Mine', 'Other') + '  of = mine.Mine\n'
  plugins.add(write(tmp_path, user, 'other'))
  assert lookup.constructor('layer', 'other').of is lookup.constructor('router', 'mine')
  plugins.add(write(tmp_path, SOURCES['router'] + 'DEPTH = 2\n'))      # read again, with who uses it
  assert lookup.constructor('layer', 'other').of is lookup.constructor('router', 'mine')
  plugins.add(write(tmp_path, user + '  depth = mine.DEPTH\n', 'other'))
  assert lookup.constructor('layer', 'other').depth == 2


def test_an_error_of_a_plugin_that_another_imports_names_its_own_line(tmp_path):
  path = plugins.add(write(tmp_path, SOURCES['router'] + '1 / 0\n')).path
  plugins.add(write(tmp_path, 'from stmoe.routers import mine\n' + SOURCES['layer'].replace('Mine', 'Other'),
                    'other'))
  with pytest.raises(errors.UserError, match=f'^{path}, line .*: ZeroDivisionError'):
    lookup.module('layer', 'other')


def test_optimizers_and_schedules_are_functions_called_like_the_file(tmp_path, capsys):
  held = ('from stmoe import ranges\n\n'
          'def held(step, *, peak: float, total_steps, warmup_steps: int, end_fraction: ranges.Positive):\n'
          '  return peak * end_fraction + 0 * step\n')
  assert plugins.add(write(tmp_path, held, 'held')).kinds == ('schedule',)
  cfg, _ = experiment.load('lm/quickstart:method=switch', ['schedule.name=held', 'schedule.end_fraction=0.5'])
  assert lookup.bind(schedules, 'schedule', cfg.schedule, total_steps=9)(2) == cfg.schedule.peak / 2
  with pytest.raises(errors.UserError, match='schedule.end_fraction=0.0: expected a number above 0'):
    experiment.load('lm/quickstart:method=switch', ['schedule.name=held', 'schedule.end_fraction=0'])
  assert lookup.fields('schedule', 'held')['end_fraction'].default is declared.REQUIRED
  assert main.main(['check', f'{tmp_path}/held.py:end_fraction=0.5']) == 0
  assert main.main(['show', 'held']) == 0
  assert main.main(['check', f'{tmp_path}/held.py:end_fractio=0.5']) == 2
  out, err = capsys.readouterr()
  assert '1 of 1 passed\nheld, of kind schedule: ' in out
  assert "held has no field 'end_fractio'; nearest: end_fraction" in err
  with pytest.raises(errors.UserError, match='stmoe.train.schedules.cosine already'):
    plugins.add(write(tmp_path, held.replace('held', 'cosine'), 'cosine'))


def test_the_code_of_an_optimizer_or_a_schedule_that_is_not_named_does_not_run(tmp_path):
  plugins.add(write(tmp_path, '1 / 0\n\n\ndef held(step, *, peak: float):\n  return peak\n', 'held'))
  assert schedules.of(ml_collections.ConfigDict(dict(name='constant', value=2.0)), 10)(3) == 2.0
  with pytest.raises(errors.UserError, match="'helt' does not exist; nearest: held "):
    schedules.of(ml_collections.ConfigDict(dict(name='helt', value=2.0)), 10)


def test_fields_are_those_of_the_file(tmp_path):
  with pytest.raises(errors.UserError, match='--plugin FILE'):
    lookup.fields('router', 'mine')
  plugins.add(write(tmp_path, SOURCES['router']))
  assert list(lookup.fields('router', 'mine')) == ['num_experts', 'k', 'capacity_factor']
  overrides = ['blocks.m.router.name=mine', 'blocks.m.router.k=1']
  assert experiment.load('lm/quickstart:method=switch', overrides)[0].blocks.m.router.k == 1
  with pytest.raises(errors.UserError, match='blocks.m.router.k=0: expected a whole number'):
    experiment.load('lm/quickstart:method=switch', ['blocks.m.router.name=mine', 'blocks.m.router.k=0'])
  plugins.add(write(tmp_path, SOURCES['executor'], 'runner'))
  assert lookup.spelled('executor', 'runner:parts=3') == ('runner', dict(parts=3))


def test_a_task_of_a_plugin_is_a_task(tmp_path):
  plugins.add(write(tmp_path, TASKS))
  assert {'counting', 'stdlib'} <= set(tasks.known())
  assert next(tasks.get('counting').documents('train')).startswith('0 1 2')


@pytest.mark.parametrize('name, source, says', [
    ('mine', 'class Other:\n  pass\n',
     'holds nothing that is called like it; nearest: call Other Mine, .*classes: Other.*; wanted: '),
    ('lab', 'import seqio\nseqio.TaskRegistry.add("a", source=None)\n',
     "nothing that is called like it; seqio's registry is not read: docs/from_t5x.md .*wanted: .*TASKS"),
    ('mine', 'class Mine:\n  pass\n', "does not tell what Mine is; .* PLUGIN = 'head'; wanted: "),
    ('mine', 'def score(predictions, examples):\n  return {}\n',
     r'has score\(predictions, examples\); wanted of the kind metric: score\(examples, predictions, '),
    ('mine', "PLUGIN = 'schedule'\n\n\ndef mine(count):\n  return count\n",
     r"line 1: PLUGIN='schedule' is no kind of classes; wanted: mine\(step, \.\.\.\)"),
    ('mine', "PLUGIN = 'family'\n" + SOURCES['layer'], r'wanted: ARCHITECTURE = \.\.\. and configure\(hf, '),
    ('mine', 'class Mine(:\n', 'is no Python'),
    ('switch', SOURCES['router'].replace('Mine', 'Switch'), 'there is a module stmoe.routers.switch already'),
    ('trace', SOURCES['router'].replace('Mine', 'Trace'), 'there is a module stmoe.routers.trace already'),
    ('no-name', SOURCES['router'], 'a plugin is one file called NAME.py')])
def test_a_file_that_is_no_plugin_is_a_line_and_changes_nothing(name, source, says, tmp_path):
  with pytest.raises(errors.UserError, match=says):
    plugins.add(write(tmp_path, source, name))
  assert not os.environ[plugins.VARIABLE] and not plugins.known()


def test_two_files_of_one_name_are_refused_and_the_same_file_twice_is_one(tmp_path):
  path = write(tmp_path, SOURCES['router'])
  (tmp_path / 'other').mkdir()
  assert plugins.add(path) == plugins.add(path) and len(plugins.known()) == 1
  with pytest.raises(errors.UserError, match='both hold the router .mine.'):
    plugins.add(write(tmp_path / 'other', SOURCES['router']))
  with pytest.raises(errors.UserError, match='No such file'):
    plugins.add(tmp_path / 'absent.py')


def test_a_file_that_is_taken_for_another_kind_says_so(tmp_path):
  path = write(tmp_path, SOURCES['layer'])
  plugins.add(path)
  said = f"'mine'; {path} is taken for the layer 'mine'; .* PLUGIN = 'head'"
  with pytest.raises(errors.UserError, match=said):
    lookup.check('router', 'mine')


def test_a_run_names_the_plugin_that_it_was_made_with(tmp_path):
  path = write(tmp_path, SOURCES['router'])
  known = dict(kind='router', name='mine', file=str(path))
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=[known])))
  config = ml_collections.ConfigDict(dict(router=dict(name='mine')))
  for asked in (plugged.check, plugged.present):
    with pytest.raises(errors.UserError, match=f"router 'mine' of a file of its own; .* --plugin {path}"):
      asked(tmp_path, config)
  plugged.check(tmp_path, ml_collections.ConfigDict(dict(router=dict(name='switch'))))   # does not need it
  plugins.add(path)
  plugged.check(tmp_path, config)


def test_a_run_names_all_the_files_that_it_was_made_with(tmp_path):
  known = [dict(kind=kind, name=name, file=f'/a/{name}.py')
           for kind, name in (('router', 'mine'), ('optimizer', 'held'), ('virtual', 'other'))]
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=known)))
  config = ml_collections.ConfigDict(dict(router=dict(name='mine'), optimizer=dict(name='held'),
                                          virtual=('zero', dict(name='other'))))
  said = ("has the router 'mine' and the optimizer 'held' and the virtual 'other' of files of its own; "
          'nearest: --plugin /a/mine.py --plugin /a/held.py --plugin /a/other.py$')
  with pytest.raises(errors.UserError, match=said):
    plugged.present(tmp_path, config)


def test_a_file_that_is_named_again_is_read_again(tmp_path):
  """In one process, as in a notebook: its fields, its code and its kind are those of its present text."""
  for k in (2, 3):
    plugins.add(write(tmp_path, SOURCES['router'].replace('k: ranges.Count = 2', f'k: ranges.Count = {k}')))
    made = inspect.signature(lookup.constructor('router', 'mine').__init__).parameters['k']
    assert lookup.fields('router', 'mine')['k'].default == made.default == k
  assert plugins.add(write(tmp_path, SOURCES['layer'])).kinds == ('layer',)
  with pytest.raises(errors.Damaged):
    plugins.add(write(tmp_path, 'class Mine('))
  assert lookup.has('layer', 'mine')     # as it was


def test_a_file_that_has_changed_since_a_run_was_trained_is_said_once(tmp_path, capsys):
  path, config = write(tmp_path, SOURCES['router']), ml_collections.ConfigDict(dict(router=dict(name='mine')))
  plugins.add(path)
  (tmp_path / 'env.json').write_text(json.dumps(dict(plugins=plugged.facts())))
  plugged.check(tmp_path, config)
  assert not capsys.readouterr().err
  plugins.add(write(tmp_path, SOURCES['router'] + '# another\n'))
  assert not plugged.changed(tmp_path, ml_collections.ConfigDict(dict(router=dict(name='switch'))))
  for _ in range(2):
    plugged.check(tmp_path, config)
  assert capsys.readouterr().err == f'note: {path} has changed since {tmp_path} was trained with it\n'


def test_a_command_that_is_proposed_names_the_files(tmp_path):
  (tmp_path / 'a folder').mkdir()
  path = write(tmp_path / 'a folder', SOURCES['router'])
  assert plugins.command('show', 'my run') == "stmoe show 'my run'"
  plugins.add(path)
  assert plugins.command('show', 'run') == f"stmoe show run --plugin '{path}'"


@pytest.fixture
def entries(monkeypatch, tmp_path):
  """Installs the modules of a folder under the given entries, as a package's metadata name them."""
  def install(*modules):
    found = [importlib.metadata.EntryPoint(module, module, plugins.GROUP) for module in modules]
    monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group: {plugins.GROUP: found}[group])
    plugins._installed.cache_clear()
    plugins._known.cache_clear()
  monkeypatch.syspath_prepend(tmp_path)
  yield install
  monkeypatch.undo()
  plugins._installed.cache_clear()
  plugins._known.cache_clear()


def test_installed_packages_name_plugins_and_one_that_is_none_hinders_nobody(entries, tmp_path, capsys):
  write(tmp_path, SOURCES['router'])
  write(tmp_path, 'x = 1\n', 'nothing_here')
  entries('mine', 'nothing_here', 'absent_module')
  assert 'mine' in lookup.available('router') and lookup.module('router', 'mine').__name__ == 'mine'
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2 and all(line.startswith('note: the plugin ') for line in said)
  assert 'there is no module absent_module' in said[1]


def test_every_command_takes_plugins_and_so_do_the_processes_it_starts(tmp_path, capsys):
  path = write(tmp_path, SOURCES['router'])
  words = ['show', 'lm/quickstart:method=switch', '--plugin', str(path), '--config.blocks.m.router.name=mine']
  assert main.main(words) == 0
  assert "'mine'" in capsys.readouterr().out
  code = 'from stmoe import lookup; print("mine" in lookup.available("router"))'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        check=True).stdout.strip() == 'True'
  assert main.main(['show', 'lm/quickstart', '--plugin']) == 2
  assert '--plugin needs a file' in capsys.readouterr().err
  assert main.main(['--help']) == 0
  assert 'Plugins and configurations are code' in capsys.readouterr().out


def test_check_says_of_each_test_whether_it_passed(tmp_path, capsys):
  assert main.main(['check', str(write(tmp_path, TASKS))]) == 0
  out = capsys.readouterr().out
  assert out.count('ok    ') == 3 and out.endswith('3 of 3 passed\n')
  assert [path.suffix for path in tmp_path.iterdir()] == ['.py']     # nothing is left beside the file
  unsteady = TASKS.replace('import tasks\n', 'import tasks\nimport random\n').replace(
      "(str(n), '", "(str(random.random()), '")
  assert main.main(['check', str(write(tmp_path, unsteady, 'unsteady'))]) == 1
  out = capsys.readouterr().out
  assert 'FAILED  A task made twice has the same fingerprint' in out and '1 failed' in out


def test_fields_are_given_to_the_checks_of_a_class_alone(tmp_path):
  score = 'def score(examples, predictions):\n  return dict(mine=1.0)\n'
  plugins.add(write(tmp_path, SOURCES['router'] + score))
  assert check._fields(('metric', 'router'), 'mine', 'k=1') == dict(metric={}, router=dict(k=1))
  assert check._fields(('metric', 'router'), 'mine', '') == dict(metric={}, router={})
  assert not lookup.fields('metric', 'mine') and lookup.fields('router', 'mine')
  with pytest.raises(errors.UserError, match='mine:k=1: metric takes no fields here'):
    check._fields(('metric',), 'mine', 'k=1')


@pytest.mark.parametrize('words, says', [
    (['swich'], "is called 'swich'; nearest: switch"), (['pr_moe'], '--kind layer'),
    (['gather:chunks=2'], 'executor takes no fields here'),
    (['table'], "source table needs the field 'files', of which no check knows a value; nearest: stmoe "),
    (['switch:jitte=1'], "no field 'jitte'; nearest: jitter")])
def test_what_cannot_be_checked_is_a_line(words, says, capsys):
  assert main.main(['check', *words]) == 2
  assert says in capsys.readouterr().err


def test_checks_see_a_router_that_gives_slots_to_padding(tmp_path):
  line = 'edges = assignment.kill_padding(edges, ctx.mask)'
  assert line in SOURCES['router']
  plugins.add(write(tmp_path, SOURCES['router'].replace(line, 'pass')))
  with pytest.raises(AssertionError, match='padding reaches an expert'):
    of_routers.padding_changes_nothing('mine')


AROUND = '''"""A router around another that reads what is given of rows."""
from stmoe import ranges
from stmoe.routers import wrappers


class Mine(wrappers.Deciding):
  """Its inner router, with a logit more where the domain is odd."""

  def __init__(self, d_model, *, inner: ranges.Named('router'), domains: ranges.Count = 4, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.domains = domains

  @property
  def reads(self):
    return dict(domain=self.domains)

  def logits(self, x, ctx):
    return self.inner.logits(x, ctx).at[..., 0].add(ctx.known('domain', 'router mine') % 2)
'''


@pytest.mark.parametrize('check', [of_routers.reports_and_has_gradients, of_routers.evaluation_draws_nothing])
def test_checks_give_a_router_another_to_go_around_and_what_it_reads(tmp_path, check):
  plugins.add(write(tmp_path, AROUND))
  check('mine')
  plugins.add(write(tmp_path, AROUND.replace('reads(self)', 'read(self)')))
  with pytest.raises(errors.UserError, match="router mine: nothing is given as 'domain'"):
    check('mine', domains=2)


def test_a_plugin_that_does_not_run_is_a_line(tmp_path):
  path = plugins.add(write(tmp_path, SOURCES['layer'].replace('import contract', 'import assignment'))).path
  with pytest.raises(errors.UserError) as error:
    lookup.module('layer', 'mine')
  assert str(error.value) == f"{path}, line 4: NameError: name 'contract' is not defined"


def test_check_says_in_which_line_a_file_does_not_run(tmp_path, capsys):
  path = write(tmp_path, TASKS.replace("tasks.no_files('counting', files)", "1 / len(files)"))
  assert main.main(['check', str(path)]) == 1
  assert f'        {path}, line 7: ZeroDivisionError: division by zero' in capsys.readouterr().out


def test_check_says_a_fault_once_that_many_checks_meet(tmp_path, capsys):
  broken = SOURCES['experts'].replace('return rows', 'return rows @ self.absent')
  assert main.main(['check', str(write(tmp_path, broken))]) == 1
  out = capsys.readouterr().out
  assert out.splitlines()[0].endswith(' checks, in about a minute)')
  faults = [line for line in out.splitlines() if line.startswith('        ')]
  assert len(faults) > 1 and faults[1:] == ['        the same as above'] * (len(faults) - 1)


EXTENDED = '''from stmoe.{package} import {name}

class Mine({name}.{called}):
  """What it extends, with nothing added."""
'''


@pytest.mark.parametrize('kind, name, called', [
    ('router', 'st_moe', 'STMoE'), ('experts', 'glu', 'Glu'), ('layer', 'dense', 'Dense'),
    ('target', 'ids', 'Ids')])
def test_a_class_that_extends_one_of_the_project_is_of_its_kind_with_its_fields(tmp_path, kind, name, called):
  package = kinds.KINDS[kind].removeprefix('stmoe.').replace('.', '/')
  source = EXTENDED.format(package=package, name=name, called=called)
  plugin = plugins.add(write(tmp_path, source))
  assert plugin.kinds == (kind,) and lookup.has(kind, 'mine')
  assert lookup.fields(kind, 'mine') == lookup.fields(kind, name)


@pytest.mark.parametrize('words', [
    ['check', 'FILE:k=1'],
    ['show', 'lm/quickstart', '--plugin', 'FILE', '--config.blocks.m.router.name=mine',
     '--config.blocks.m.router.k=1']])
def test_a_field_without_a_range_is_said_to_lack_it(tmp_path, capsys, words):
  path = str(write(tmp_path, SOURCES['router'].replace('k: ranges.Count = 2', 'k=2')))
  assert main.main([word.replace('FILE', path) for word in words]) == 2
  assert f'{path} has it without a range' in capsys.readouterr().err


def test_experts_are_told_their_number_by_the_router_whatever_their_annotation_says(tmp_path, capsys):
  source = SOURCES['experts'].replace('class Mine:\n', """class Mine:
  def __init__(self, d_model, *, num_experts: int, d_ff: int = 2, init_scale: float = 1.0, rngs):
    pass
""")
  words = ['show', 'lm/quickstart:method=switch', '--plugin', str(write(tmp_path, source)),
           '--config.blocks.m.experts.name=mine']
  assert main.main(words) == 0
  assert main.main([*words, '--config.blocks.m.experts.num_experts=3']) == 2
  said = capsys.readouterr().err
  assert 'nearest: config.blocks.m.router.num_experts' in said and 'without a range' not in said


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
  path = plugins.add(write(tmp_path, source)).path
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
  path = plugins.add(write(tmp_path, source)).path
  layer = lookup.recipe('layer', dict(name='shared', d_ff=4, inner=dict(name='mine')))(4, rngs=nnx.Rngs(0))
  x = jnp.ones((1, 2, 4))
  with pytest.raises(errors.UserError, match=re.escape(f'{path}{says}')):
    jax.eval_shape(lambda x: checked.answer(layer, x, contract.Context.of(x), {}), x)


def test_an_error_in_the_code_of_a_plugin_is_a_line_of_any_command(tmp_path, capsys, monkeypatch):
  path = plugins.add(write(tmp_path, 'def score(examples, predictions):\n  return 1 / 0\n')).path
  monkeypatch.setattr(main, '_run', lambda argv: lookup.module('metric', 'mine').score([], []))
  assert main.main(['show']) == 2
  assert capsys.readouterr().err == f'stmoe: {path}, line 2: ZeroDivisionError: division by zero\n'
  with pytest.raises(ZeroDivisionError):
    main.main(['show', '--debug'])


@pytest.mark.slow
def test_the_model_of_the_page_trains_with_all_its_files(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for block in pages.blocks(pages.ROOT / 'docs' / 'plugins.md'):
    if block.note('file'):
      (tmp_path / block.note('file')).write_text(block.text, encoding='utf-8')
  for file in tmp_path.glob('*.py'):
    if file.stem != 'calm_lm':
      plugins.add(file)
  few = ['--config.train.steps=2', '--config.eval.batches=1', '--config.eval.every=2']
  assert main.main(['train', 'calm_lm.py:smoke', '--workdir', 'run', *few]) == 0, capsys.readouterr().err
  (tmp_path / 'prompts.jsonl').write_text('{"inputs": "import ", "given/domain": 1}\n')
  assert main.main(['infer', 'run', 'prompts.jsonl', '--length', '4']) == 0, capsys.readouterr().err
  (tmp_path / 'prompts.jsonl').write_text('{"inputs": "import "}\n')
  assert main.main(['infer', 'run', 'prompts.jsonl', '--length', '4']) == 2
  assert "nothing is given as 'domain'" in capsys.readouterr().err


@pytest.mark.parametrize('given, wanted', [(1.0, 'float'), (dict(mine='high'), 'dict')])
def test_a_metric_that_gives_no_numbers_names_its_file(given, wanted, tmp_path):
  path = plugins.add(write(tmp_path, f'def score(examples, predictions):\n  return {given!r}\n')).path
  with pytest.raises(errors.UserError, match=f'{path}: score returned {wanted}; wanted: dict name -> number'):
    taskscore.score(['mine'], [dict(references=['a'])], ['b'])


def test_a_metric_that_fails_on_wrong_predictions_does_not_pass_its_checks(tmp_path):
  source = 'def score(examples, predictions):\n  return dict(mine=float(predictions[0]))\n'
  path, said = plugins.add(write(tmp_path, source)).path, []
  assert conform.failures('metric', 'mine', {}, lambda title, wrong: said.append(wrong)) == 1
  assert said == [f"{path}, line 2: ValueError: could not convert string to float: ''"]


STRATEGY = """import jax.numpy as jnp


class Mine:
  def check(self, model):
    pass

  def __call__(self, model, batch, length, key):
    return jnp.ones((len(batch['decoder_positions']), length), jnp.int32)
"""


def test_a_strategy_need_not_know_what_ends_a_text(tmp_path):
  assert plugins.add(write(tmp_path, STRATEGY)).kinds == ('strategy',)
  assert generate.ending(dict(name='mine'), None, None) == dict(name='mine')
  assert not of_strategies._ends('mine') and of_strategies._ends('sample')


def test_an_executor_that_returns_another_shape_names_its_file(tmp_path):
  path = plugins.add(write(tmp_path, 'def execute(x, a, experts, key=None):\n  return x[0]\n')).path
  x, a = execution.activations(), execution.made('random', 1, 4)
  run = banks.opening(lookup.executor('mine'))
  says = rf'{path}: execute returned float32\[16,8\]; wanted: float32\[2,16,'
  with pytest.raises(errors.UserError, match=says):
    jax.eval_shape(run, x, a, execution.bank('mlp'))
