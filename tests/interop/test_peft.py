"""PEFT's layout: what tensors are called, and which adapters are refused."""

import pytest

from stmoe import errors
from stmoe.interop import peft
from stmoe.interop import rules
from stmoe.interop.families import llama
from stmoe.interop.families import mixtral

LORA = dict(peft_type='LORA', r=4, lora_alpha=8)


def site(name, family, expert=None):
  module = rules.tensor(name, family.RULES, expert).removesuffix('.weight')
  path = tuple(int(key) if key.isdigit() else key for key in name.split('/'))
  return peft.Site(path, expert, module)


def test_tensors_are_called_as_the_matrices_of_a_family():
  wq, expert = 'decoder/layers/3/attention/wq', 'decoder/layers/3/layer/experts/wo'
  part = peft.lora(site(wq, llama), 'a')
  assert part.tensor == 'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
  assert part.path == ('decoder', 'layers', 3, 'attention', 'adapters', 'wq', 'a') and part.turned
  part = peft.lora(site(expert, mixtral, 2), 'magnitude')
  assert part.tensor == 'base_model.model.model.layers.3.block_sparse_moe.experts.2.w2.lora_magnitude_vector'
  assert part.expert == 2 and not part.turned


def test_tensors_of_mixlora():
  attention, gate = site('decoder/layers/1/attention/wo', llama), site('decoder/layers/1/layer/wi', llama)
  assert peft.mixlora(attention, 'b', None).tensor == 'mixlora.layers.1.self_attn.o_proj.lora_B.weight'
  part = peft.mixlora(gate, 'a', 5)
  assert part.tensor == 'mixlora.layers.1.experts.5.gate_proj.lora_A.weight'
  assert part.path == ('decoder', 'layers', 1, 'layer', 'experts', 'wi', 'a')
  assert peft.router(gate).tensor == 'mixlora.layers.1.gate.weight'
  assert peft.routed(dict(num_experts=8, top_k=2, routing_strategy='mixtral')) == dict(num_experts=8, k=2)


@pytest.mark.parametrize('changed, said', [
    (dict(peft_type='LORAA'), "peft_type='LORAA' is not supported; nearest: LORA"),
    (dict(bias='all'), "bias='all' is not supported; nearest: 'none'"),
    (dict(rank_pattern=dict(q_proj=8)), 'rank_pattern='),
    (dict(modules_to_save=['lm_head']), 'modules_to_save='),
    (dict(r=None), 'adapter_config.json has no r'), (dict(r=0), 'adapter_config.json: r=0: .*at least 1'),
    (dict(use_dora='yes'), "adapter_config.json: use_dora='yes'")])
def test_other_adapters_are_refused(changed, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    peft.section(LORA | changed)
  assert '\n' not in str(caught.value)
  assert peft.section(LORA) == dict(rank=4, alpha=8.0, rslora=False, dora=False, gaussian=False)
