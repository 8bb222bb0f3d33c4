"""Files outside of the package: what they are told by, and where they are found."""

import ast
import inspect
import os

import ml_collections
import pytest

from stmoe import declared
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import plugins
from stmoe.cli import main
from stmoe.data.text import tasks
from stmoe.plugins import kinds
from stmoe.runs import plugged
from stmoe.train import schedules
from tests.plugins import files

ROUTER, LAYER = files.SOURCES['router'], files.SOURCES['layer']


def test_a_plugin_named_without_its_ending_or_in_place_of_an_experiment_says_what_was_meant(tmp_path):
  path = files.write(tmp_path, ROUTER)
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


@pytest.mark.parametrize('kind', files.SOURCES)
def test_a_file_is_told_by_its_text_and_found_by_its_name(kind, tmp_path):
  plugin = plugins.add(files.write(tmp_path, files.SOURCES[kind]))
  assert (plugin.kinds, plugin.name) == ((kind,), 'mine')
  assert 'mine' in lookup.available(kind)
  assert lookup.module(kind, 'mine').__file__ == str(plugin.path)
  others = [other for other in lookup.PACKAGES if other != kind and 'mine' in lookup.available(other)]
  assert not others


def test_a_file_may_hold_several_kinds_which_are_one_module(tmp_path):
  score = 'def score(examples, predictions):\n  return dict(mine=1.0)\n'
  plugin = plugins.add(files.write(tmp_path, ROUTER + score))
  assert plugin.kinds == ('metric', 'router') and plugin.holds == "the metric and the router 'mine'"
  assert lookup.module('metric', 'mine') is lookup.module('router', 'mine')
  assert [fact['kind'] for fact in plugged.facts()] == ['metric', 'router']
  plugins.add(files.write(tmp_path, ROUTER + score.replace('1.0', '2.0')))
  assert lookup.module('metric', 'mine').score([], []) == dict(mine=2.0)
  assert not lookup.available('metric').count('mine') > 1
  user = 'from stmoe.metrics import mine\nfrom stmoe.routers import mine as same\n'
  plugins.add(files.write(tmp_path, user + LAYER.replace('Mine', 'Other'), 'other'))
  plugins.add(files.write(tmp_path, ROUTER + score))
  assert lookup.module('layer', 'other').mine is lookup.module('layer', 'other').same


def test_a_line_says_what_a_class_is_where_its_text_leaves_that_open(tmp_path):
  assert plugins.add(files.write(tmp_path, "PLUGIN = 'head'\n" + LAYER)).kinds == ('head',)
  with pytest.raises(errors.UserError, match="mine.py, line 1: PLUGIN='heads'; nearest: head "):
    plugins.add(files.write(tmp_path, "PLUGIN = 'heads'\n" + LAYER))


def test_plugins_import_one_another_from_the_folders_of_their_kinds(tmp_path):
  plugins.add(files.write(tmp_path, ROUTER))
  other = LAYER.replace('Mine', 'Other')
  user = 'from stmoe.routers import mine\n' + other + '  of = mine.Mine\n'
  plugins.add(files.write(tmp_path, user, 'other'))
  assert lookup.constructor('layer', 'other').of is lookup.constructor('router', 'mine')
  plugins.add(files.write(tmp_path, ROUTER + 'DEPTH = 2\n'))   # read again, with who uses it
  assert lookup.constructor('layer', 'other').of is lookup.constructor('router', 'mine')
  plugins.add(files.write(tmp_path, user + '  depth = mine.DEPTH\n', 'other'))
  assert lookup.constructor('layer', 'other').depth == 2


def test_optimizers_and_schedules_are_functions_called_like_the_file(tmp_path, capsys):
  held = ('from stmoe import ranges\n\n'
          'def held(step, *, peak: float, total_steps, warmup_steps: int, end_fraction: ranges.Positive):\n'
          '  return peak * end_fraction + 0 * step\n')
  assert plugins.add(files.write(tmp_path, held, 'held')).kinds == ('schedule',)
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
    plugins.add(files.write(tmp_path, held.replace('held', 'cosine'), 'cosine'))


def test_the_code_of_an_optimizer_or_a_schedule_that_is_not_named_does_not_run(tmp_path):
  plugins.add(files.write(tmp_path, '1 / 0\n\n\ndef held(step, *, peak: float):\n  return peak\n', 'held'))
  assert schedules.of(ml_collections.ConfigDict(dict(name='constant', value=2.0)), 10)(3) == 2.0
  with pytest.raises(errors.UserError, match="'helt' does not exist; nearest: held "):
    schedules.of(ml_collections.ConfigDict(dict(name='helt', value=2.0)), 10)


def test_fields_are_those_of_the_file(tmp_path):
  with pytest.raises(errors.UserError, match='--plugin FILE'):
    lookup.fields('router', 'mine')
  plugins.add(files.write(tmp_path, ROUTER))
  assert list(lookup.fields('router', 'mine')) == ['num_experts', 'k', 'capacity_factor']
  overrides = ['blocks.m.router.name=mine', 'blocks.m.router.k=1']
  assert experiment.load('lm/quickstart:method=switch', overrides)[0].blocks.m.router.k == 1
  with pytest.raises(errors.UserError, match='blocks.m.router.k=0: expected a whole number'):
    experiment.load('lm/quickstart:method=switch', ['blocks.m.router.name=mine', 'blocks.m.router.k=0'])
  plugins.add(files.write(tmp_path, files.SOURCES['executor'], 'runner'))
  assert lookup.spelled('executor', 'runner:parts=3') == ('runner', dict(parts=3))


def test_a_task_of_a_plugin_is_a_task(tmp_path):
  plugins.add(files.write(tmp_path, files.TASKS))
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
    ('mine', "PLUGIN = 'family'\n" + LAYER, r'wanted: ARCHITECTURE = \.\.\. and configure\(hf, '),
    ('mine', 'class Mine(:\n', 'is no Python'),
    ('switch', ROUTER.replace('Mine', 'Switch'), 'there is a module stmoe.routers.switch already'),
    ('trace', ROUTER.replace('Mine', 'Trace'), 'there is a module stmoe.routers.trace already'),
    ('no-name', ROUTER, 'a plugin is one file called NAME.py')])
def test_a_file_that_is_no_plugin_is_a_line_and_changes_nothing(name, source, says, tmp_path):
  with pytest.raises(errors.UserError, match=says):
    plugins.add(files.write(tmp_path, source, name))
  assert not os.environ[plugins.VARIABLE] and not plugins.known()


def test_two_files_of_one_name_are_refused_and_the_same_file_twice_is_one(tmp_path):
  path = files.write(tmp_path, ROUTER)
  (tmp_path / 'other').mkdir()
  assert plugins.add(path) == plugins.add(path) and len(plugins.known()) == 1
  with pytest.raises(errors.UserError, match='both hold the router .mine.'):
    plugins.add(files.write(tmp_path / 'other', ROUTER))
  with pytest.raises(errors.UserError, match='No such file'):
    plugins.add(tmp_path / 'absent.py')


def test_a_file_that_is_taken_for_another_kind_says_so(tmp_path):
  path = files.write(tmp_path, LAYER)
  plugins.add(path)
  said = f"'mine'; {path} is taken for the layer 'mine'; .* PLUGIN = 'head'"
  with pytest.raises(errors.UserError, match=said):
    lookup.check('router', 'mine')


def test_a_file_that_is_named_again_is_read_again(tmp_path):
  """In one process, as in a notebook: its fields, its code and its kind are those of its present text."""
  for k in (2, 3):
    source = ROUTER.replace('k: ranges.Count = 2', f'k: ranges.Count = {k}')
    plugins.add(files.write(tmp_path, source))
    made = inspect.signature(lookup.constructor('router', 'mine').__init__).parameters['k']
    assert lookup.fields('router', 'mine')['k'].default == made.default == k
  assert plugins.add(files.write(tmp_path, LAYER)).kinds == ('layer',)
  with pytest.raises(errors.Damaged):
    plugins.add(files.write(tmp_path, 'class Mine('))
  assert lookup.has('layer', 'mine')     # as it was


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
  plugin = plugins.add(files.write(tmp_path, source))
  assert plugin.kinds == (kind,) and lookup.has(kind, 'mine')
  assert lookup.fields(kind, 'mine') == lookup.fields(kind, name)


def test_experts_are_told_their_number_by_the_router_whatever_their_annotation_says(tmp_path, capsys):
  source = files.SOURCES['experts'].replace('class Mine:\n', """class Mine:
  def __init__(self, d_model, *, num_experts: int, d_ff: int = 2, init_scale: float = 1.0, rngs):
    pass
""")
  words = ['show', 'lm/quickstart:method=switch', '--plugin', str(files.write(tmp_path, source)),
           '--config.blocks.m.experts.name=mine']
  assert main.main(words) == 0
  assert main.main([*words, '--config.blocks.m.experts.num_experts=3']) == 2
  said = capsys.readouterr().err
  assert 'nearest: config.blocks.m.router.num_experts' in said and 'without a range' not in said
