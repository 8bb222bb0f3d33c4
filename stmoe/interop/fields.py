"""Reading a config.json, and comparing what a family makes of it with a configuration of ours."""

import json

from stmoe import errors
from stmoe import lookup
from stmoe import ranges
from stmoe import sections
from stmoe.interop import rules

# Names of activation functions -> ours; 'gelu' there is the exact one, which no family here has.
ACTIVATIONS = {'relu': 'relu', 'silu': 'silu', 'swish': 'silu', 'gelu_new': 'gelu',
               'gelu_pytorch_tanh': 'gelu'}
# Fields that say how to compute or to train a model, not what it is.
FREE = {'dtype', 'param_dtype', 'remat', 'scan_layers', 'dropout_rate', 'init_scale', 'executor', 'jitter',
        'input_dropout', 'exploration', 'scope', 'device_budget', 'allow_causal', 'rate', 'centred',
        'freeze_after', 'greedy', 'start_id', 'end_ids', 'forced_id', 'start_prompts'}
LAYERS = ranges.Whole(1, 10_000)       # each is a letter of a pattern


def need(hf, key, kind=ranges.Count):
  """Returns the field `key` of a config.json; raises UserError where it is missing or not of range `kind`."""
  if hf.get(key) is None:
    raise errors.UserError(f'config.json has no {key}{errors.nearest(key, hf)}')
  return kind.check(f'config.json: {key}', hf[key])


def given(hf, key, kind, default=None):
  """Returns the field `key` of a config.json; `default` where it is missing or null."""
  return default if hf.get(key) is None else need(hf, key, kind)


def same(hf, *keys):
  """Returns the whole number in any of the fields `keys`, which are names of one field in several versions.

  Raises UserError where none is there, or two disagree.
  """
  stated = {key: need(hf, key) for key in keys if hf.get(key) is not None}
  if len(set(stated.values())) > 1:
    raise errors.UserError(f'config.json says one number twice: '
                           f'{" and ".join(f"{key}={value}" for key, value in stated.items())}')
  return next(iter(stated.values())) if stated else need(hf, keys[0])


def only(hf, **allowed):
  """Raises UserError if a field of `allowed` is there with another value."""
  for key, value in allowed.items():
    if hf.get(key) is not None and hf[key] != value:
      raise errors.UserError(f'config.json: {key}={hf[key]!r:.60} is not supported; nearest: {value!r:.60}')


def activation(hf, key, default=None):
  """Returns our name of the activation function in field `key`."""
  name = given(hf, key, ranges.Text, default)
  if name not in ACTIVATIONS:
    raise errors.UserError(f'config.json: {key}={name!r:.60} is not supported'
                           f'{errors.nearest(name, ACTIVATIONS)} (there are: {", ".join(ACTIVATIONS)})')
  return ACTIVATIONS[name]


def spelled(section, default='gelu'):
  """Returns the name there of the activation function of a `section` of ours; `default` where it has none."""
  name = section.get('activation', default)
  return 'gelu_pytorch_tanh' if name == 'gelu' else name


def ids(hf, generation, model):
  """Returns the fields start_id, end_ids and forced_id of section `model`.

  The first two are left out where they are 0 and 1, as here, the third where nothing is forced. A decoder
  without a first token starts, as in its training, from the token that ends texts.

  Args:
    hf, generation: config.json and generation_config.json, {} without the file; the second file counts more.
  """
  fields = hf | {key: value for key, value in generation.items() if value is not None}
  ends = fields.get('eos_token_id')
  ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
  encodes = lookup.encodes_inputs(model['name'])
  first = ('decoder_start_token_id', 'pad_token_id') if encodes else ('bos_token_id',)
  start = next((fields[key] for key in first if fields.get(key) is not None), (*ends, 0)[0])
  forced = fields.get('forced_bos_token_id') if encodes else None
  for value in (start, *ends, *([] if forced is None else [forced])):
    if type(value) is not int or not 0 <= value < model['vocab_size']:
      raise errors.UserError(f'config.json: {value!r:.60} among {", ".join(first)}, eos_token_id and '
                             f'forced_bos_token_id is no id of vocab_size={model["vocab_size"]}')
  end_fields = {} if ends in ([], [1]) else dict(end_ids=tuple(ends))
  return (end_fields | (dict(start_id=start) if start else {})
          | ({} if forced is None else dict(forced_id=forced)))


def family(hf):
  """Returns (name, module) of the family of a config.json; raises UserError naming the nearest families."""
  name = hf.get('model_type')
  if name is None:
    raise errors.UserError(f'config.json has no model_type (supported: '
                           f'{", ".join(lookup.available("family"))})')
  name = need(hf, 'model_type', ranges.Text).replace('-', '_')       # files are called like Python's modules
  if not lookup.has('family', name):
    names = lookup.available('family')
    raise errors.UserError(f'config.json: model_type={hf["model_type"]!r:.60} is not supported'
                           f'{errors.nearest(name, names)} (there are: {", ".join(names)})')
  module = lookup.module('family', name)
  named = given(hf, 'architectures', ranges.Many(ranges.Text), ())
  known = (module.ARCHITECTURE, *getattr(module, 'ALIASES', ()))     # of code that lies beside weights
  stranger = next((architecture for architecture in named if architecture not in known), None)
  if stranger is not None:
    raise errors.UserError(f'config.json: the architecture {stranger} is not supported; nearest: '
                           f'{module.ARCHITECTURE}')
  return name, module


def differences(mine, theirs):
  """Returns texts 'field is a, not b' about where two configurations make different models.

  Letters of blocks may differ, and so may FREE fields. A field that is left out has its default.

  Args:
    mine, theirs: dicts with the sections `model` and `blocks`.
  """
  mine, theirs = _flat(_whole(mine)), _flat(_whole(theirs))
  return [f'{field} is {mine.get(field)!r}, not {theirs.get(field)!r}' for field in sorted({*mine, *theirs})
          if json.dumps(mine.get(field)) != json.dumps(theirs.get(field))]


def _whole(c):
  """The model section, complete but for FREE fields, with the block of every layer in place of patterns."""
  c = sections.whole({part: dict(c[part]) for part in ('model', 'blocks')})
  model = _bound(c['model'])
  for stack in ('encoder', 'decoder', 'layers'):
    if stack in model:
      blocks = [dict(c['blocks'][letter]) for letter in rules.letters(model[stack])]
      for block in blocks:                                           # one window of all, or a window of each
        block['window'] = block.get('window') or model.get('window')
      model[stack] = {f'{i:02d}': _bound(block) for i, block in enumerate(blocks)}
  model['window'] = None
  model['num_kv_heads'] = model.get('num_kv_heads') or model['num_heads']
  return model


def _bound(section):
  """A section without FREE fields."""
  return {key: _bound(value) if hasattr(value, 'keys') else value for key, value in section.items()
          if key not in FREE}


def _flat(fields, prefix=''):
  flat = {}
  for key, value in fields.items():
    flat |= _flat(value, f'{prefix}{key}.') if hasattr(value, 'keys') else {prefix + key: value}
  return flat
