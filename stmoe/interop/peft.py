"""Adapters in files, in the layout of PEFT: adapter_config.json and adapter_model.safetensors.

LoRA's tensors are called as the matrices they stand beside, base_model.model.NAME.lora_A.weight. MixLoRA's
(arXiv:2404.15159) are mixlora.layers.3.experts.0.gate_proj.lora_A.weight, and mixlora.layers.3.gate.weight of
a router. A is [r, in] there, B is [out, r], a router [E, in].
"""

import re
from typing import NamedTuple

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields

CONFIG, STEM = 'adapter_config.json', 'adapter_model'
FILE = f'{STEM}.safetensors'
# Arrays of ours -> the ends of tensors' names.
ENDS = {'a': 'lora_A.weight', 'b': 'lora_B.weight', 'magnitude': 'lora_magnitude_vector'}
LORA, MIXLORA = 'LORA', 'MIXLORA'
# Fields that make another adapter of the same tensors, with the values that make none.
ONLY = dict(bias='none', fan_in_fan_out=False, modules_to_save=[], rank_pattern={}, alpha_pattern={},
            layer_replication=[], lora_bias=False, target_parameters=[], trainable_token_indices=[],
            use_qalora=False)


class Site(NamedTuple):
  """A matrix of a model.

  path:   of the matrix in numbered parameters, a tuple of keys; expert: its number along the first axis.
  module: what the matrix is called in files, 'model.layers.0.self_attn.q_proj'.
  """
  path: tuple
  expert: int | None
  module: str


class Part(NamedTuple):
  """An array of an adapter, or an expert's part of one.

  path:   of the array in numbered parameters; expert: number along the first axis, None for the whole array.
  tensor: its name in files; turned: whether the tensor is [out, in].
  """
  path: tuple
  expert: int | None
  tensor: str
  turned: bool


def lora(site: Site, array: str) -> Part:
  """Returns the Part of the array, a key of ENDS, of a LoRA beside a matrix."""
  *above, name = site.path
  return Part((*above, 'adapters', name, array), site.expert, f'base_model.model.{site.module}.{ENDS[array]}',
              array != 'magnitude')


def mixlora(site: Site, array: str, expert: int | None) -> Part:
  """Returns the Part of the array, a key of ENDS, of a MixLoRA: of an expert, or None beside attention."""
  *above, name = site.path
  layer = f'mixlora.layers.{number(site)}'
  if expert is None:
    below = re.sub(r'.*?layers\.\d+\.', '', site.module)             # self_attn.q_proj
    return lora(site, array)._replace(tensor=f'{layer}.{below}.{ENDS[array]}')
  module = site.module.rpartition('.')[2]
  return Part((*above, 'experts', name, array), expert, f'{layer}.experts.{expert}.{module}.{ENDS[array]}',
              array != 'magnitude')


def router(site: Site) -> Part:
  """Returns the Part of the router of a MixLoRA in whose layer a matrix is."""
  return Part((*site.path[:-1], 'router', 'w'), None, f'mixlora.layers.{number(site)}.gate.weight', True)


def number(site: Site) -> int:
  """Returns the number of the layer that a matrix is in; raises UserError for a matrix of none."""
  if 'layers' not in site.path:
    raise errors.UserError(f'{site.module} is in no layer, and MixLoRA is of layers; nearest: lora')
  return site.path[site.path.index('layers') + 1]


def section(config: dict) -> dict:
  """Returns the fields that all adapters have, of an adapter_config.json: those of `parts/adapters/lora.py`.

  Raises UserError for an adapter that is none of these, naming the field.
  """
  kind = config.get('peft_type')
  if kind not in (LORA, MIXLORA):
    raise errors.UserError(f'{CONFIG}: peft_type={kind!r:.60} is not supported'
                           f'{errors.nearest(kind, (LORA, MIXLORA))} (there are: {LORA}, {MIXLORA})')
  for key, value in ONLY.items():
    if config.get(key) not in (None, value):
      raise errors.UserError(f'{CONFIG}: {key}={config[key]!r:.60} is not supported; nearest: {value!r}')
  flag = lambda key: fields.given(config, key, ranges.Flag, False)
  try:
    return dict(rank=fields.need(config, 'r'), alpha=float(fields.need(config, 'lora_alpha', ranges.Any)),
                rslora=flag('use_rslora'), dora=flag('use_dora'),
                gaussian=config.get('init_lora_weights', config.get('lora_init')) == 'gaussian')
  except errors.UserError as error:
    raise errors.UserError(str(error).replace('config.json', CONFIG, 1)) from None


def dropout(config: dict) -> float:
  """Returns the rate of dropout of an adapter_config.json."""
  return float(fields.given(config, 'lora_dropout', ranges.Below1, 0.0))


def described(low: dict, rate: float, modules: list[str], base: str, task: str) -> dict:
  """Returns the adapter_config.json of a LoRA.

  Args:
    low:     dict of the fields that `section` returns; rate: of dropout.
    modules: what the matrices are called; base: name of the model; task: 'CAUSAL_LM', say.
  """
  alpha = int(low['alpha']) if low['alpha'] == int(low['alpha']) else low['alpha']
  return dict(peft_type=LORA, task_type=task, base_model_name_or_path=base, r=low['rank'], lora_alpha=alpha,
              lora_dropout=rate, target_modules=modules, bias='none', use_rslora=low['rslora'],
              use_dora=low['dora'], init_lora_weights='gaussian' if low['gaussian'] else True,
              fan_in_fan_out=False, inference_mode=True)


def routed(config: dict) -> dict:
  """Returns the router's fields, num_experts and k, of the adapter_config.json of a MixLoRA."""
  fields.only(config, routing_strategy='mixtral')
  return dict(num_experts=fields.need(config, 'num_experts'),
              k=fields.given(config, 'top_k', ranges.Count, 2))


def targets(modules: list[str], everything: list[str]) -> list[str]:
  """Returns short names of modules: the last part of each, where no other module ends in this part.

  >>> targets(['a.q', 'b.q'], ['a.q', 'b.q', 'a.k']), targets(['a.q'], ['a.q', 'b.q'])
  (['q'], ['a.q'])
  """
  last = lambda module: module.rpartition('.')[2]
  chosen = {last(module) for module in modules}
  wide = {module for module in everything if last(module) in chosen}
  return sorted(chosen) if wide == set(modules) else sorted(modules)
