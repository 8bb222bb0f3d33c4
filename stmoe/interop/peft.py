"""Adapters in files, in the layout of PEFT: adapter_config.json and adapter_model.safetensors.

LoRA's tensors are called as the matrices they stand beside, base_model.model.NAME.lora_A.weight. MixLoRA's
(arXiv:2404.15159) are called in one of two forms, by the age of what wrote them:

  current   mixlora.layers.3.mlp.gate_proj.experts.0.lora_A.weight, mixlora.layers.3.mlp.moe_gate.weight
  legacy    mixlora.layers.3.experts.0.gate_proj.lora_A.weight, mixlora.layers.3.gate.weight

A is [r, in] there, B is [out, r], a router [E, in].
"""

from collections.abc import Collection
import re
from typing import NamedTuple

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop import rules

CONFIG, STEM = 'adapter_config.json', 'adapter_model'
FILE = f'{STEM}.safetensors'
# Arrays of ours -> the ends of tensors' names.
ENDS = {'a': 'lora_A.weight', 'b': 'lora_B.weight', 'magnitude': 'lora_magnitude_vector'}
LORA, MIXLORA = 'LORA', 'MIXLORA'
# Fields that make another adapter of the same tensors, with the values that make none.
ONLY = dict(bias='none', fan_in_fan_out=False, modules_to_save=[], rank_pattern={}, alpha_pattern={},
            layer_replication=[], lora_bias=False, target_parameters=[], trainable_token_indices=[],
            use_qalora=False)


class Form(NamedTuple):
  """How the tensors of a MixLoRA are called, after mixlora.layers.3.

  strategy: the routing_strategy that such an adapter_config.json has.
  gate:     what a router is called; expert: an expert's part of a matrix.
  """
  strategy: str
  gate: str
  expert: str

  def called(self, tensor: str) -> bool:
    """Returns whether a tensor of this name is a router or an expert in this form."""
    expert = self.expert.format(module='[^.]+', expert='[0-9]+')
    below = f'{self.gate}.weight|{expert}.lora_'.replace('.', r'\.')
    return re.match(rf'mixlora\.layers\.[0-9]+\.({below})', tensor) is not None


# 'current' is what the package mixlora 0.2.3 opens and MoE-PEFT writes; 'legacy' what the package's own
# converter reads. Tensors beside attention are called alike in both.
CURRENT, LEGACY = 'current', 'legacy'
FORMS = {CURRENT: Form('mixlora', 'mlp.moe_gate', 'mlp.{module}.experts.{expert}'),
         LEGACY: Form('mixtral', 'gate', 'experts.{expert}.{module}')}
# Fields that MixLoRA may give to experts alone (`expert_lora`), with their defaults.
OF_EXPERTS = dict(r=None, lora_alpha=None, lora_dropout=None, use_rslora=False, use_dora=False)


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


def mixlora(site: Site, array: str, expert: int | None, form: str = LEGACY) -> Part:
  """Returns the Part of the array, a key of ENDS, of a MixLoRA: of an expert, or None beside attention.

  form: key of FORMS.
  """
  *above, name = site.path
  layer = f'mixlora.layers.{number(site)}'
  if expert is None:
    below = re.sub(r'.*?layers\.\d+\.', '', site.module)             # self_attn.q_proj
    return lora(site, array)._replace(tensor=f'{layer}.{below}.{ENDS[array]}')
  below = FORMS[form].expert.format(module=short(site), expert=expert)
  return Part((*above, 'experts', name, array), expert, f'{layer}.{below}.{ENDS[array]}',
              array != 'magnitude')


def router(site: Site, form: str = LEGACY) -> Part:
  """Returns the Part of the router of a MixLoRA in whose layer a matrix is; form: key of FORMS."""
  tensor = f'mixlora.layers.{number(site)}.{FORMS[form].gate}.weight'
  return Part((*site.path[:-1], 'router', 'w'), None, tensor, True)


def short(site: Site) -> str:
  """Returns the last part of what a matrix is called, as in target_modules: 'q_proj'."""
  return site.module.rpartition('.')[2]


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


def form_of(config: dict, names: Collection[str]) -> str:
  """Returns the key of FORMS by which the tensors `names` of a MixLoRA are called.

  Raises UserError for names of both forms, for those of none, and where adapter_config.json says otherwise.
  """
  found = {key: min(filter(form.called, names), default=None) for key, form in FORMS.items()}
  if None not in found.values():
    raise errors.UserError(f'the adapter mixes two forms of names: {found[CURRENT]} is {CURRENT}, '
                           f'{found[LEGACY]} is {LEGACY}; nearest: the folder as it was saved')
  key = next((key for key, name in found.items() if name is not None), None)
  if key is None:
    raise errors.UserError('no form of MixLoRA has these names of routers and experts: '
                           f'{rules.some(sorted(names))}; nearest: mixlora.layers.0.'
                           f'{FORMS[CURRENT].gate}.weight')
  strategy, fits = config.get('routing_strategy'), FORMS[key].strategy
  if strategy not in (None, fits):
    raise errors.UserError(f'{CONFIG}: routing_strategy={strategy!r:.60} does not go with {found[key]}, '
                           f'which is {key}; nearest: {fits!r}')
  return key


def targeted(config: dict) -> set[str] | None:
  """Returns the names in target_modules of the adapter_config.json of a MixLoRA; None without the field."""
  given = config.get('target_modules')
  if isinstance(given, dict):
    given = [name for name, chosen in given.items() if chosen]
  if given is not None and not isinstance(given, list):
    raise errors.UserError(f'{CONFIG}: target_modules={given!r:.60} is no list of names; nearest: '
                           f'[{given!r:.60}]')
  return given if given is None else set(map(str, given))


def routed(config: dict) -> dict:
  """Returns the router's fields, num_experts and k, of the adapter_config.json of a MixLoRA.

  Raises UserError for experts that differ from the adapters beside attention.
  """
  own = config.get('expert_lora') or {}
  if not isinstance(own, dict):
    raise errors.UserError(f'{CONFIG}: expert_lora={own!r:.60} has no fields; nearest: {{}}')
  for key, default in OF_EXPERTS.items():
    if own.get(key, config.get(key, default)) != config.get(key, default):
      raise errors.UserError(f'{CONFIG}: {key}={own[key]!r:.60} of expert_lora is not supported; nearest: '
                             f'{config.get(key, default)!r}, as of all adapters')
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
