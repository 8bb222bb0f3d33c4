"""Every field of every configuration is held to its range, in one place, before anything is imported."""

import functools

import ml_collections
import pytest

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import experiment
from stmoe import sections
from stmoe.train import groups

EVERY = [name + arg for name in experiment.available() for arg in ('', ':smoke')]
SMALL = 'lm/stdlib:method=switch,smoke'


def numbers(value):
  return isinstance(value, (int, float)) or isinstance(value, (tuple, list)) and any(map(numbers, value))


@pytest.mark.parametrize('name', EVERY)
def test_every_number_of_a_published_configuration_has_a_range(name):
  """`load` has held all fields to their ranges; none may be left of which nothing is declared."""
  config, _ = experiment.load(name)
  groups = list(sections.groups(config))
  bare = [group.where(key) for group in groups for key, value in group.values.items()
          if key not in group.fields and (numbers(value) or not isinstance(value, ml_collections.ConfigDict))]
  assert not bare, f'declare them in stmoe/sections.py or where they are used: {bare}'
  reached = {group.where(key) for group in groups for key in group.values}
  reached |= {f'data.eda.{key}' for key in config.data.get('eda', ())}
  assert set(experiment.flatten(config)) <= reached


def test_checking_changes_nothing_that_is_right():
  for name in EVERY[::7]:
    config, _ = experiment.load(name)
    before = experiment.run_id(config)
    sections.check(config)
    assert experiment.run_id(config) == before


def test_choices_are_those_of_the_code():
  """Names that sections.py repeats, because it imports nothing that computes."""
  assert set(sections.PARTS) == {*groups.PARTS, *groups.LABELS}


@pytest.mark.parametrize('override, said', [
    ('train.clip=-1', 'at least 0; nearest: 0.0'), ('train.clip=nan', 'at least 0'),
    ('train.steps=0', 'at least 1; nearest: 1'), ('train.steps=9223372036854775808', 'nearest: 2147483647'),
    ('train.batch_size=True', 'a whole number'), ('train.batch_size=None', 'a whole number'),
    ('optimizer.eps=0', 'above 0'), ('optimizer.b2=1', 'below 1'), ('optimizer.b1=2', 'below 1'),
    ('optimizer.b1=0.99999999999', 'below 1'), ('optimizer.weight_decay=inf', 'at least 0'),
    ('optimizer.name=adam', 'nearest: adamw'), ('schedule.peak=-1', 'at least 0'),
    ('schedule.peak=nan', 'at least 0'), ('schedule.warmup_steps=-5', 'at least 0'),
    ('schedule.end_fraction=1.5', 'from 0 to 1; nearest: 1.0'), ('schedule.name=cosin', 'nearest: cosine'),
    ('loss.label_smoothing=1.0', 'below 1'), ('loss.label_smoothing=-0.1', 'below 1'),
    ('loss.z=1e39', 'at least 0'),
    ('losses.balance=(-1,"mean")', 'at least 0'), ('losses.balance=(1,"max")', 'mean, sum'),
    ('losses.balance=[]', 'mean, sum'), ('seed=-1', 'nearest: 0'),
    ('seed=18446744073709551616', 'from 0 to 1844'),
    ('mesh.data=0', 'at least 1 or -1'), ('eval.batches=-1', 'at least 0'), ('profile.steps=0', 'at least 1'),
    ('blocks.m.group_size=0', 'at least 1 or None'), ('blocks.m.layer=rotary', 'no layer is called'),
    ('blocks.m.executor=gathr', 'nearest: gather'), ('blocks.m.executor=all_to_all:chunks=-1', 'at least 1'),
    ('blocks.m.router.num_experts=1.5', 'a whole number'), ('blocks.m.router.name=swich', 'nearest: switch'),
    ('blocks.m.router.capacity_factor=(1.0,)', 'or one for both'),
    ('blocks.m.router.capacity_factor=-1', 'at least 0'), ('blocks.m.experts.d_ff=-8', 'at least 1'),
    ('blocks.m.experts.init_scale=0', 'above 0'), ('blocks.m.experts.name=mlpp', 'nearest: mlp'),
    ('model.dtype=float16', 'float32, bfloat16'), ('model.remat=ful', 'nearest: full'),
    ('model.name=mixtral', 'no model is called'), ('model.name=t5', "has no field 'layers'"),
    ("model.layers=(('dm',1.5),)", 'letters of blocks'), ('model.layers=()', 'letters of blocks'),
    ('model.vocab_size=0', 'at least 1'), ('data.length=0', 'at least 1'), ('data.replaced=2.0', 'to 1'),
    ('data.objective=images', 'classification'),
    ('data.objective=seq2seq', "needs the field 'inputs_length'"),
    ('data.mixture=(0.0,0.0)', 'names of tasks'), ('data.extra_ids=-1', 'at least 0'),
    ('data.eval_split=zzz', 'train, validation'), ('data.shuffle=2', 'True or False'),
    ('checkpoint.keep=0', 'at least 1'), ('optimizer.eps=1e30', 'at most 1'),
    ('groups.router.rate=-1', 'at least 0'), ('groups.router.rat=1', "no field 'rat'; nearest: rate"),
    ('groups.router.weight_decay=x', 'at least 0 or None'), ('groups.router.turn=1', 'at least 1)'),
    ('groups.router.every=0', 'at least 1'), ('groups.router=1', 'does not exist'),
    (f'blocks.m.executor={"a" * 300}', 'no executor is called'), ('blocks.m.router.name=..', 'no router'),
    (f'model.name={"a" * 5000}', 'no model is called'),
    ('model.name=mixtral', 'config.model.name: no model'),
    ('log.writers=wandbb', 'log.writers: no writer is called'),
    ('model.attention.name=atention', 'model.attention.name: no attention is called'),
    ('decode.name=gredy', 'decode.name: no strategy is called'),
    ('blocks.m.executor=gathr', 'blocks.m.executor: no executor is called'),
    ('blocks.m.executor=all_to_all:chunk=4', "blocks.m.executor: executor 'all_to_all:chunk=4': all_to_all"),
    ('blocks.m.executor=all_to_all:chunks=0', "blocks.m.executor: executor 'all_to_all:chunks=0': chunks=0"),
    ('blocks.m.virtual=zer', 'blocks.m.virtual: no virtual is called'),
    ('blocks.m.experts.name=feature', "blocks.m.experts.d_ff=256: experts 'feature' has no field 'd_ff'"),
    ('loss.name=teacher', "target 'teacher' needs the field 'inner'"),
    ('optimizer.name=sgd', "has no field 'b1'; optimizer.name=adamw, adabelief have it, or leave 'b1'"),
    ('schedule.name=constant', "has no field 'end_fraction'; schedule.name="),
    ('blocks.m.router.name=thor', 'router.name=')])
def test_a_field_out_of_its_range_is_one_line(override, said):
  with pytest.raises(errors.UserError) as error:
    experiment.load(SMALL, [override])
  line = str(error.value)
  assert said in line and '\n' not in line and len(line) < 700, line


def test_one_number_for_a_pair_means_both_everywhere():
  """Show, run id and training see the same two numbers."""
  one, _ = experiment.load(SMALL, ['blocks.m.router.capacity_factor=2'])
  two, _ = experiment.load(SMALL, ['blocks.m.router.capacity_factor=(2.0,2.0)'])
  assert one.blocks.m.router.capacity_factor == (2.0, 2.0)
  assert experiment.run_id(one) == experiment.run_id(two)
  with one.ignore_type():
    one.blocks.m.router.capacity_factor = 3.0                        # as a file may have it
  sections.check(one)
  assert one.blocks.m.router.capacity_factor == (3.0, 3.0)


@pytest.mark.parametrize('method', ['deepseek_moe', 'deepseek_v3', 'deepseek_v4'])
def test_a_sum_of_gates_is_not_0(method):
  """Upcycling divides experts by it."""
  with pytest.raises(errors.UserError, match='router.route_scale=0.0: expected a number above 0'):
    experiment.load(f'lm/stdlib:method={method},smoke', ['blocks.m.inner.router.route_scale=0'])


def test_groups_of_parameters_are_set_from_the_command_line():
  config, _ = experiment.load(SMALL, ['groups.router.rate=0.1', '--config.groups.expert.turn=(1,2)',
                                      'groups.expert.every=50', 'groups.rest.train=False'])
  usual = dict(where='', train=True, rate=1.0, weight_decay=None, clip=None, every=1, turn=(0, 1), lasts=1,
               masked=0.0, pruned=None, proximal=0.0)
  assert config.groups.to_dict() == dict(
      router=usual | dict(rate=0.1), expert=usual | dict(turn=(1, 2), every=50),
      rest=usual | dict(train=False))
  assert config.is_locked and 'groups' not in experiment.load(SMALL)[0]


def test_weight_decay_of_a_group_is_what_the_optimizer_allows():
  config, _ = experiment.load(SMALL, ['groups.router.weight_decay=1.5'])
  with config.unlocked():
    config.optimizer = dict(name='adafactor')
  with pytest.raises(errors.UserError, match='groups.router.weight_decay=1.5: expected a number from 0 to 1'):
    sections.check(config)


def test_derived_fields_follow_and_none_is_taken_where_it_is_allowed():
  config, _ = experiment.load('lm/stdlib:method=smoe_dropout,smoke', ['train.steps=77'])
  assert config.blocks.m.router.total_steps == 77
  config, _ = experiment.load('switch/base_c4', ['blocks.m.group_size=None'])
  assert config.blocks.m.group_size is None


GONE = object()


@pytest.mark.parametrize('path, value, said', [
    ('optimizer.nesterov', True, "'adamw' has no field 'nesterov'; optimizer.name=sgd has it"),
    ('train.stepz', 3, "train.stepz=3: train has no field 'stepz'; nearest: steps"),
    ('train.steps', GONE, "train: train needs the field 'steps'"),
    ('blocks.m.router.kk', 3, "router 'switch' has no field 'kk'"),
    ('blocks.m.router.num_experts', GONE, "needs the field 'num_experts'"),
    ('blocks.m.router.name', GONE, 'the name of a router'),
    ('blocks.m.layer', GONE, "blocks.m has no field 'layer'"),
    ('blocks.m.experts.num_experts', 3, "experts 'mlp' has no field 'num_experts'"),
    ('blocks.m.router', 'switch', 'expected a group with the name of a router'),
    ('blocks.m', 3, 'blocks.m=3: expected a group'), ('train', 3, 'train=3: expected a group'),
    ('optimizer.b1', '0.9', "optimizer.b1='0.9'"), ('optimizer.b1', None, 'optimizer.b1=None'),
    ('train.steps', True, 'train.steps=True'), ('train.steps', 10.0, 'train.steps=10.0'),
    ('mine', dict(rate=float('nan')), 'mine.rate=nan: expected a finite number'),
])
def test_what_a_file_may_get_wrong(path, value, said):
  fields = experiment.load(SMALL)[0].to_dict()
  *outer, key = path.split('.')
  group = functools.reduce(lambda group, name: group[name], outer, fields)
  group.pop(key, None)
  group |= {} if value is GONE else {key: value}
  with pytest.raises(errors.UserError) as error:
    sections.check(ml_collections.ConfigDict(fields))
  assert said in str(error.value), str(error.value)


def test_configurations_of_earlier_runs_pass():
  """They may lack fields and have others, of which what is built says so; nonsense is nonsense there too."""
  config, _ = experiment.load(SMALL)
  config.unlock()
  del config.loss['passes'], config.train['microbatches']
  config.train.old, config.blocks.m.router.old, config.optimizer.name = 3, 4, 'lion'
  sections.check(config, whole=False)
  config.train.clip = -1.0
  with pytest.raises(errors.UserError, match='train.clip=-1.0'):
    sections.check(config, whole=False)


def test_what_is_missing_is_named():
  config = experiment.load(SMALL)[0].to_dict()
  for path in ('eval', 'model', 'data', 'eval.batch_size', 'model.vocab_size', 'blocks.m.router'):
    *outer, key = path.split('.')
    fields = ml_collections.ConfigDict(config).to_dict()
    functools.reduce(lambda group, name: group[name], outer, fields).pop(key)
    with pytest.raises(errors.UserError, match=key):
      sections.present(ml_collections.ConfigDict(fields))


def test_a_file_of_ones_own_that_declares_nothing_has_finite_numbers(monkeypatch):
  fields = {'num_experts': declared.Field(None), 'tau': declared.Field(None, 0.1)}
  monkeypatch.setattr(sections, '_module', lambda packages, kind, name: (True, sections._own(fields), True))
  of = lookup.fields
  monkeypatch.setattr(lookup, 'fields', lambda kind, name: fields if name == 'switch' else of(kind, name))
  router = dict(name='switch', tau=-3.0)
  config = ml_collections.ConfigDict(dict(blocks=dict(m=dict(layer='moe', router=router))))
  sections.check(config)
  config.blocks.m.router.tau = float('inf')
  with pytest.raises(errors.UserError, match='blocks.m.router.tau=inf: expected a finite number'):
    sections.check(config)
  del config.blocks.m.router.tau
  config.blocks.m.router.beta = 1.0                                  # which its class does not take
  with pytest.raises(errors.UserError, match="blocks.m.router.beta=1.0: router 'switch' has no field 'beta'"):
    sections.check(config)
