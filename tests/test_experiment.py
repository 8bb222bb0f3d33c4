"""Experiments are found by name, overridden with typed values, and resolved to stable JSON."""

import json
import os
import re
import sys

import ml_collections
import pytest

from stmoe import declared
from stmoe import errors
from stmoe import experiment
from stmoe import routers
from stmoe import sections

TOY = '''"""A toy.

Second paragraph.
"""
import ml_collections
from stmoe.configs import arguments

def get_config(arg=''):
  arg = arguments.parse(arg, smoke=False, width=8)
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.lr = 0.1
  c.flag = True
  c.width = arg.width
  c.half = c.get_ref('width') // 2
  c.layers = (1,)
  c.every = [1, 2]
  c.nothing = None
  c.opt = dict(name='adam', b=ml_collections.config_dict.placeholder(float), empty=dict())
  return c
'''


@pytest.fixture
def toy(tmp_path):
  path = tmp_path / 'toy.py'
  path.write_text(TOY)
  return str(path)


@pytest.mark.parametrize('override, key, value', [
    ('lr=1', 'lr', 1.0),
    ('--config.layers=(1,2)', 'layers', (1, 2)),
    ('--config.layers=1,2', 'layers', (1, 2)),
    ('every[0]=7', 'every', [7, 2]),
    ('flag=False', 'flag', False),
    ('width=10', 'half', 5),
    ('opt.name=3', 'opt.name', '3'),
    ('opt.b=0.5', 'opt.b', 0.5),
    ('opt.b=1', 'opt.b', 1.0),
    ('nothing=4', 'nothing', 4),
    ('opt.name=a=b', 'opt.name', 'a=b'),
])
def test_override(toy, override, key, value):
  config, _ = experiment.load(toy, [override])
  found = experiment.flatten(config)[key]
  assert found == value and type(found) is type(value)


def test_a_run_that_is_not_there_is_named_with_the_nearest_that_is(tmp_path):
  (tmp_path / 'half').mkdir()
  (tmp_path / 'half' / 'config.json').write_text('{}')
  with pytest.raises(errors.UserError, match=f"no run directory and no .* nearest: {tmp_path}/half$"):
    experiment.run_directory(f'{tmp_path}/hlf')
  assert str(experiment.run_directory('lm/quickstart:smoke')) == 'runs/lm_quickstart_smoke'


@pytest.mark.parametrize('override, words', [
    ('nosuch=1', ['config.nosuch does not exist']),
    ('sed=1', ['config.sed does not exist', 'nearest: config.seed']),
    ('opt.nam=1', ['config.opt.nam does not exist', 'nearest: config.opt.name']),
    ('seed.x=1', ['config.seed.x does not exist', 'nearest: config.seed']),
    ('name=1', ['config.name does not exist; nearest: config.opt.name']),
    ('optimizer.random_seed=1', ['does not exist; nearest: config.seed']),
    ('seed=1.5', ['config.seed=1.5', 'a whole number']),
    ('flag=2', ['config.flag=2', 'a bool']),
    ('opt.b=high', ['config.opt.b=high', 'a float']),
    ('opt=1', ['config.opt is a group', 'config.opt.name']),
    ('every[5]=1', ['config.every[5]', 'the list has 2']),
    ('every[0]=x', ['config.every[0]=x', 'an int']),
    ('layers[0]=1', ['config.layers[0]', 'give the tuple whole']),
    ('seed', ['--config.seed needs a value']),
])
def test_wrong_override_is_named(toy, override, words):
  with pytest.raises(errors.UserError) as error:
    experiment.load(toy, [override])
  assert all(word in str(error.value) for word in words), str(error.value)


def test_config_is_locked(toy):
  config, _ = experiment.load(toy)
  with pytest.raises(AttributeError):
    config.new = 1


def test_argument_and_names(toy, tmp_path):
  config, name = experiment.load(f'{toy}:smoke,width=12')
  assert (config.width, config.half) == (12, 6)
  assert name == f'{str(tmp_path).lstrip("/")}/toy:smoke,width=12'
  assert experiment.default_workdir('lm/stdlib:smoke') == 'runs/lm_stdlib_smoke'
  with pytest.raises(errors.UserError, match='toy.py:smok: argument .smok.'):
    experiment.load(f'{toy}:smok')


def test_path_inside_the_folder_is_the_name():
  name = next(iter(experiment.available()))
  path = experiment.folder() / f'{name}.py'
  assert experiment.load(str(path))[1] == name
  assert experiment.load(f'{path}:')[0].to_dict() == experiment.load(name)[0].to_dict()


def test_unknown_experiment_names_the_nearest(tmp_path):
  with pytest.raises(errors.UserError, match="'lm/stdlb'; nearest: lm/stdlib"):
    experiment.load('lm/stdlb')
  for name in ('../configs/lm/stdlib', 'lm', '', 'lm/stdlib/'):
    with pytest.raises(errors.UserError, match='no experiment is called'):
      experiment.load(name)
  with pytest.raises(errors.UserError, match='no such file: nowhere.py'):
    experiment.load('nowhere.py')
  (tmp_path / 'empty.py').write_text('x = 1\n')
  with pytest.raises(errors.UserError, match='defines no get_config'):
    experiment.load(str(tmp_path / 'empty.py'))


def test_every_experiment_is_listed_with_a_line():
  found = experiment.available()
  assert 'lm/stdlib' in found and all(found.values())
  assert not any(name.endswith(('paper', 'arguments', '__init__')) for name in found)


def test_json_is_resolved_and_the_id_is_stable(toy):
  config, _ = experiment.load(toy, ['width=10'])
  resolved = json.loads(experiment.to_json(config))
  assert (resolved['half'], resolved['layers'], resolved['opt']['b']) == (5, [1], None)
  assert list(resolved) == sorted(resolved)
  other = ml_collections.ConfigDict(dict(reversed(list(config.to_dict().items()))))
  assert experiment.run_id(other) == experiment.run_id(config)
  assert experiment.run_id(experiment.load(toy)[0]) != experiment.run_id(config)
  # sha1 of '{"a": [1, 2], "b": 0.5}', by sha1sum
  small = ml_collections.ConfigDict(dict(b=0.5, a=(1, 2)))
  assert experiment.run_id(small) == 'd7779b2a5fb12ac99fd425bedb17dece97e76dfb'


def test_diff_names_fields_and_both_values(toy):
  left, right = experiment.load(toy)[0], experiment.load(toy, ['lr=1', 'opt.name=sgd'])[0]
  assert experiment.diff(left, left) == {}
  assert experiment.diff(left, right) == {'lr': (0.1, 1.0), 'opt.name': ('adam', 'sgd')}
  with right.unlocked():
    del right.seed
  assert experiment.diff(left, right)['seed'] == (0, experiment.MISSING)


@pytest.mark.parametrize('name, found', [
    ('lm/text', ('lm/text', '')), ('lm/text:smoke,width=2', ('lm/text', 'smoke,width=2')),
    ('a/b.py', ('a/b.py', '')), ('a:b.py:smoke', ('a:b.py', 'smoke')), ('a:b/c.py', ('a:b/c.py', '')),
    ('b.py:x=y.py', ('b.py', 'x=y.py'))])
def test_the_argument_comes_after_the_name(name, found):
  assert experiment.split(name) == found


@pytest.mark.parametrize('name', ['1984.py', 'a[1]b.py', 'a,b c.py', 'line\nend.py', '.hidden.py', '*.py',
                                  'a:b.py', 'caf\udce9.py', 'a.b.py'])
def test_a_file_may_have_any_name(tmp_path, monkeypatch, name):
  (tmp_path / '.folder').mkdir()
  (tmp_path / '.folder' / name).write_text(TOY)
  monkeypatch.chdir(tmp_path)
  config, canonical = experiment.load(f'.folder/{name}:width=16')
  assert config.width == 16 and canonical == f'.folder/{name[:-3]}:width=16'
  assert experiment.load(f'../{tmp_path.name}/.folder/{name}')[1] == f'{tmp_path.name}/.folder/{name[:-3]}'
  assert experiment.load(str(tmp_path / '.folder' / name))[1] == f'{tmp_path}/.folder/{name[:-3]}'[1:]


@pytest.mark.parametrize('content', [b'def get_config(:\n', b'\xff\xfe', b'a = 1\x00'])
def test_a_file_that_is_no_python_is_one_line(tmp_path, content):
  (tmp_path / 'a.py').write_bytes(content)
  with pytest.raises(errors.Damaged, match='a.py: is no Python'):
    experiment.load(str(tmp_path / 'a.py'))


@pytest.mark.parametrize('content, said', [
    ('import nothere\n', "a.py, line 1: ModuleNotFoundError: No module named 'nothere'"),
    ('def get_config(arg):\n  raise ValueError("boom\\nbang")\n', 'a.py, line 2: ValueError: boom bang'),
    ('def get_config():\n  return 1\n', r'a.py: TypeError: get_config\(\) takes 0 positional'),
    ('def get_config(arg):\n  return {}\n', 'a.py: get_config returns a dict; wanted: a ConfigDict')])
def test_a_mistake_in_a_file_of_ones_own_is_one_line(tmp_path, monkeypatch, content, said):
  (tmp_path / 'a.py').write_text(content)
  monkeypatch.chdir(tmp_path)
  for name in ('a.py', str(tmp_path / 'a.py')):
    with pytest.raises(errors.UserError, match=said) as caught:
      experiment.load(name)
    assert '\n' not in str(caught.value)


def test_a_value_that_is_no_utf8_is_refused(toy):
  with pytest.raises(errors.UserError, match='config.opt.name=.* is not UTF-8'):
    experiment.load(toy, ['opt.name=caf\udce9'])


METHOD = 'lm/stdlib:method=st_moe,smoke'


@pytest.mark.parametrize('name', [METHOD, 'vmoe/digits', 'robust_qa/moe_head', 'deepseek_moe/sizes'])
def test_every_default_is_in_the_configuration(name):
  config, _ = experiment.load(name)
  for group in sections.groups(config):
    known = {key: field.written for key, field in group.fields.items()}
    assert not [group.where(key) for key, value in known.items()
                if value is not declared.UNWRITTEN and key not in group.values]
  assert config.train.trainable == 'all'


def test_defaults_are_those_of_the_classes_and_may_be_set():
  config, _ = experiment.load(METHOD)
  assert config.blocks.m.router.k == 2 and config.model.attention.name == 'attention'
  assert config.decode.name == 'greedy' and 'decode' not in experiment.load('vmoe/digits')[0]
  changed, _ = experiment.load(METHOD, ['--config.blocks.m.router.k=3', 'model.attention.qk_norm=1e-6'])
  assert experiment.diff(config, changed) == {'blocks.m.router.k': (2, 3),
                                              'model.attention.qk_norm': (None, 1e-6)}
  assert experiment.run_id(config) != experiment.run_id(changed)


@pytest.mark.parametrize('overrides', [
    ['blocks.m.router.name=gshard'], ['blocks.m.router.logit_cap=3', 'blocks.m.router.name=gshard']])
def test_another_name_has_its_own_defaults_in_any_order(overrides):
  router = experiment.load(METHOD, overrides)[0].blocks.m.router
  assert router.threshold == 0.5 and 'balance_choices' not in router                 # st_moe has 0.2
  assert router.capacity_factor == (2.5, 4.0) and router.num_experts == 8            # as the experiment says
  assert router.logit_cap == (3.0 if len(overrides) > 1 else 0.0)
  back, _ = experiment.load(METHOD, ['blocks.m.router.name=gshard', 'blocks.m.router.name=st_moe'])
  assert back.to_dict() == experiment.load(METHOD)[0].to_dict()


def test_a_name_that_is_a_default_is_replaced_in_an_experiment_and_in_a_complete_configuration():
  """Of a run every field is there; the name that is chosen is no default of the old choice, which go."""
  told = ['loss.name=values']
  of_run = experiment.override(experiment.load(METHOD)[0], told, whole=False)
  assert of_run.loss.name == 'values' and 'label_smoothing' not in of_run.loss
  assert experiment.load(METHOD, told)[0].to_dict() == of_run.to_dict()


def test_what_a_module_is_put_around_may_be_named():
  told = ['loss.inner.name=ids', 'loss.inner.label_smoothing=0.1', 'loss.name=teacher', 'loss.run=runs/big']
  for config in (experiment.load(METHOD, told)[0],
                 experiment.override(experiment.load(METHOD)[0], told, whole=False)):
    assert config.loss.name == 'teacher' and config.loss.temperature == 1.0
    assert config.loss.inner.to_dict() == experiment.load(METHOD)[0].loss.to_dict() | {'label_smoothing': 0.1}
  attention = [f'blocks.m.attention.{text}' for text in (
      'name=switch_head', 'router.name=gshard', 'router.num_experts=2')]
  assert experiment.load(METHOD, attention)[0].blocks.m.attention.router.num_experts == 2
  with pytest.raises(errors.UserError, match="no target is called 'id'; nearest: ids"):
    experiment.load(METHOD, ['loss.name=teacher', 'loss.inner.name=id'])
  with pytest.raises(errors.UserError, match='loss.innr.name does not exist'):
    experiment.load(METHOD, ['loss.name=teacher', 'loss.innr.name=ids'])


def test_a_field_that_may_be_absent_is_added_and_told():
  told = ['blocks.m.tied=True', 'blocks.m.window=16', 'model.param_dtype=bfloat16']
  for config in (experiment.load(METHOD, told)[0],
                 experiment.override(experiment.load(METHOD)[0], told, whole=False)):
    assert (config.blocks.m.tied, config.blocks.m.window, config.model.param_dtype) == (True, 16, 'bfloat16')
  for told, said in {
      'blocks.m.tie=True': 'nearest: config.blocks.m.tied,',
      'blocks.m.window=0': 'config.blocks.m.window=0: expected a whole number of at least 1; nearest: 1',
      'blocks.m.around=parallel': 'nearest: config.blocks.m.around.name,',
      'data.labels=price': '; data.source=table has it',
      'data.source=table': "config.data.source: the fields of data.objective='lm' are not those of",
  }.items():
    with pytest.raises(errors.UserError, match=re.escape(said)):
      experiment.load(METHOD, [told])


def test_what_the_experiment_says_of_another_class_is_one_line():
  said = r"capacity_factor=\(2.5, 4.0\): router 'smoe' has no field 'capacity_factor'; blocks.m.router.name="
  with pytest.raises(errors.UserError, match=said):
    experiment.load(METHOD, ['blocks.m.router.name=smoe'])
  with pytest.raises(errors.UserError, match="data.objective='seq2seq' needs the field 'inputs_length'"):
    experiment.load(METHOD, ['data.objective=seq2seq'])


def test_fields_that_a_class_needs_may_be_given():
  config, _ = experiment.load(METHOD, ['blocks.d.layer=gmlp', 'blocks.d.length=128'])
  assert config.blocks.d.inner.name == 'spatial' and config.blocks.d.length == 128
  config, _ = experiment.load(METHOD, ['data.inputs_length=8', 'data.targets_length=4',
                                       'data.objective=seq2seq'])
  assert (config.data.inputs_length, config.data.targets_length) == (8, 4)


@pytest.mark.parametrize('override, value', [
    ('losses.balance=0.5', (0.5, 'mean')), ('losses.mine=0.01', (0.01, 'mean')),
    ('losses.mine=0.01,sum', (0.01, 'sum')), ('losses.mine=(1,"sum")', (1.0, 'sum'))])
def test_a_loss_may_be_added(override, value):
  config, _ = experiment.load(METHOD, [override])
  assert config.losses[override.partition('=')[0].removeprefix('losses.')] == value
  with pytest.raises(errors.UserError, match='losses.mine=.*one of mean, sum'):
    experiment.load(METHOD, ['losses.mine=0.01,max'])


@pytest.mark.parametrize('override, value', [
    ('data.cache_dir=1', '1'), ('data.task=None', 'None'), ('data.files=1984,2', ('1984', '2')),
    ('blocks.m.router.capacity_factor=1.25', (1.25, 1.25)), ('schedule.peak=1', 1.0),
    ('blocks.m.router.capacity_factor=1,None', (1.0, None)),
    ('blocks.m.virtual=zero,copy', ('zero', 'copy'))])
def test_a_value_has_the_type_of_its_field(override, value):
  found = experiment.flatten(experiment.load(METHOD, [override])[0])[override.partition('=')[0]]
  assert found == value and type(found) is type(value)


def test_virtual_experts_are_names():
  with pytest.raises(errors.UserError, match="no virtual is called 'zer'; nearest: zero"):
    experiment.load(METHOD, ['blocks.m.virtual=zer'])


def test_a_new_file_has_its_defaults_in_the_configuration(tmp_path, monkeypatch):
  """Nothing but the file says so."""
  (tmp_path / 'probe.py').write_text(
      'from stmoe import ranges\n\nclass Probe:\n  def __init__(self, d_model, *, num_experts: ranges.Count, '
      'tau: ranges.Share = 0.25, given=3, rngs):\n    pass\n')
  monkeypatch.setattr(routers, '__path__', [*routers.__path__, str(tmp_path)])
  name = 'lm/stdlib:method=switch,smoke'
  fields = experiment.load(name)[0].to_dict()
  fields['blocks']['m']['router'] = dict(name='probe', num_experts=8)
  config = experiment.override(ml_collections.ConfigDict(fields), ['blocks.m.router.tau=0.5'])
  assert config.blocks.m.router.to_dict() == dict(name='probe', num_experts=8, tau=0.5)


def test_a_file_is_read_as_it_is_now(tmp_path, monkeypatch):
  """Also where Python keeps compiled files, and the new text has the size and the second of the old text."""
  monkeypatch.setattr(sys, 'dont_write_bytecode', False)
  file = tmp_path / 'sweep.py'
  for text in ('x = 1\n', 'x = 2\n'):
    file.write_text(text)
    os.utime(file, (1e9, 1e9))
    assert f'x = {experiment.module_of(file).x}\n' == text
