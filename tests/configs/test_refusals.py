"""Arguments of experiments that do not fit are refused in a line that names them and a value that fits."""

import re

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.configs import common
from stmoe.configs.lm import methods

# Experiment and argument -> the line, after the name.
REFUSED = {
    'upcycling/fine_grained:granularity=0':
        'granularity=0: expected a whole number from 1 to 2816; nearest: 1',
    'upcycling/fine_grained:granularity=256,smoke':
        'granularity=256: expected a whole number from 1 to 128; nearest: 128',
    'upcycling/fine_grained:copies=0': 'copies=0: expected a whole number of at least 1; nearest: 1',
    'dynamic_dino/digits:k=0': 'k=0: expected a whole number from 1 to 256; nearest: 1',
    'dynamic_dino/digits:copies=-1': 'copies=-1: expected a whole number of at least 1; nearest: 1',
    'adamoe/mixtral:target=0.5,k=0': 'k=0: expected a whole number of at least 1; nearest: 1',
    'lm/stdlib:method=dynmole,experts=0': 'experts=0: expected a whole number of at least 1; nearest: 1',
    'lm/zoo:method=peer,experts=-1': 'experts=-1: expected a whole number of at least 1; nearest: 1',
    'pr_moe/sizes:layers=-2': 'layers=-2: expected a whole number from 4 to 10000; nearest: 4',
    'vmoe/sizes:size=s32,last=7': 'last=7: expected a whole number from 0 to 4; nearest: 4',
    'vmoe/ilsvrc2012:last=-1': 'last=-1: expected a whole number from 0 to 4; nearest: 0',
    'vmoe/digits:experts=1': 'experts=1: expected a whole number of at least 2; nearest: 2',
    'mofme/digits:experts=1,smoke': 'experts=1: expected a whole number of at least 2; nearest: 2',
    'mofme/weather:experts=1,k=1,released':
        'experts=1: expected a whole number of at least 2; nearest: 2',
    'mpoe/gpt2:experts=1': 'experts=1: expected a whole number of at least 2; nearest: 2',
    'remoe/small:k=0': 'k=0: expected a whole number of at least 1; nearest: 1',
    'remoe/small:k=4,experts=2': 'experts=2: expected a whole number of at least 4; nearest: 4',
    'robust_qa/moe_head:experts=1': 'experts=1: expected a whole number of at least 2; nearest: 2',
    'expert_choice/sizes:method=gshard,experts=1':
        'experts=1: expected a whole number of at least 2; nearest: 2',
    'lm/stdlib:method=dynmole,experts=257':
        'experts=257: expected a whole number from 1 to 256; nearest: 256',
    'lm/stdlib:method=smoe_dropout,experts=257,smoke':
        'experts=257: expected a whole number from 1 to 128; nearest: 128',
    'lm/stdlib:method=top_p_routing,experts=1000,smoke':
        'experts=1000: expected a whole number from 1 to 639; nearest: 639',
    'chain_of_experts/sizes:experts=1': 'experts=1: expected a whole number of at least 4; nearest: 4',
    'chain_of_experts/sizes:layers=0': 'layers=0: expected a whole number from 1 to 10000; nearest: 1',
    'pr_moe/sizes:layers=1000000': 'layers=1000000: expected a whole number from 1 to 10000; nearest: 10000',
    'mpoe/t5:model=switch,bond=7':
        'bond=7: experts of model=switch are no matrix product operators; nearest: bond=0',
    'rmoe/sizes:method=plains': 'method=plains does not exist; nearest: plain',
}
BLIND = ['dense', 'gmlp', 'avg_k', 'mixture_of_depths', 'mixture_of_supernets', 'switch',
         'quantile_balancing']


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_the_name_that_was_given(name):
  with pytest.raises(errors.UserError) as caught:
    experiment.load(name)
  assert str(caught.value).startswith(f'{name}: {REFUSED[name]}')


@pytest.mark.parametrize('name', [name for name in REFUSED if 'method=plains' not in name])
def test_the_nearest_value_is_accepted(name):
  key, near = re.match(r'(\w+)=.*nearest: (?:\w+=)?(\S+)$', REFUSED[name]).groups()
  experiment.load(re.sub(rf'\b{key}=[^,]+', f'{key}={near}', name))


@pytest.mark.parametrize('method', BLIND)
def test_leaky_is_refused_by_name_where_no_router_looks_ahead(method):
  with pytest.raises(errors.UserError, match=f'leaky=True: method={method} has no .*; nearest: leaky=False$'):
    experiment.load(f'lm/zoo:method={method},leaky')


def test_leaky_is_accepted_or_refused_by_name_with_every_method():
  for method in methods.table():
    try:
      cfg = experiment.load(f'lm/zoo:method={method},leaky')[0]
    except errors.UserError as refusal:
      assert 'leaky=True' in str(refusal)
    else:
      routers = [common.innermost(block.router) for block in map(common.sparse, cfg.blocks.values()) if block]
      assert any(router.get('allow_causal') for router in routers)


def test_leaky_keeps_the_backbone_of_a_causal_method():
  assert experiment.load('lm/zoo:method=smlp,leaky')[0].model.name == 'mlp_lm'
  assert experiment.load('lm/zoo:method=expert_choice,leaky')[0].model.name == 'lm'
