"""A name that is nothing here is answered with what somebody may have meant by it."""

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import explained
from stmoe import lookup
from stmoe.cli import main


@pytest.mark.parametrize('name, says', [
    ('runs/switch.gin', 'gin files are not read, docs/from_t5x.md'),
    ('gs://bucket/checkpoint_1000', 'copy what lies there into a folder'),
    ('allenai/OLMoE-1B-7B-0924', 'hf download allenai/OLMoE-1B-7B-0924 --local-dir OLMoE-1B-7B-0924'),
    ('st_moe', "'st_moe'; st_moe is a name of routers: stmoe show st_moe"),
    ('jsonl', 'nearest: finetune/jsonl; jsonl is a name of tasks: stmoe show jsonl'),
    ('lm/quickstrat', 'nearest: lm/quickstart')])
def test_an_unknown_experiment_is_told_what_it_may_have_been(name, says):
  with pytest.raises(errors.UserError, match='no experiment is called') as caught:
    experiment.find_module(name)
  assert says in str(caught.value)


def test_what_is_no_name_has_no_hint():
  assert not any(map(experiment.instead_of, ('', '..', 'a/b', 'lm/text', 'no such thing')))


@pytest.mark.parametrize('argv, says', [
    (['train', 'lm/quickstart', '--gin.TRAIN_STEPS=3'], '--gin.TRAIN_STEPS=3: gin is not read; fields'),
    (['convert', 'gs://bucket/a', 'new'], 'gs://bucket/a is no folder; addresses are not read')])
def test_words_of_other_tools_are_answered_in_a_line(argv, says, capsys):
  assert main.main(argv) == 2
  assert says in capsys.readouterr().err


def test_a_router_that_is_no_compared_method_is_told_how_it_is_chosen():
  with pytest.raises(errors.UserError, match='nearest: method=switch --config.blocks.m.router.name=ntlb'):
    experiment.load('lm/quickstart:method=ntlb')
  with pytest.raises(errors.UserError, match='nearest: switch'):
    experiment.load('lm/quickstart:method=swich')


@pytest.mark.parametrize('kind, name', [('router', 'switch'), ('router', 'replay'), ('executor', 'gather')])
def test_a_module_is_shown_with_its_file_and_fields(kind, name, capsys):
  assert main.main(['show', name]) == 0
  said = capsys.readouterr().out
  assert said.startswith(f'{name}, of kind {kind}: ') and f'{name}.py' in said
  fields = lookup.options(kind, name) if kind == 'executor' else lookup.fields(kind, name)
  assert all(f'\n  {key}\n' in said for key, field in fields.items() if field.range)


def test_fields_of_a_module_have_their_text_range_and_default():
  said = list(explained.of_module('router', 'switch'))
  at = said.index('  min_capacity')
  assert [line.strip() for line in said[at + 1:at + 3]] == [
      'least slots of an expert', '(a whole number of at least 0; default 4)']
