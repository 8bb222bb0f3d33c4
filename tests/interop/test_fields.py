"""Every field of another library's config.json is right, or one line that names it."""

import json
import math
import pathlib

import ml_collections
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import sections
from stmoe.interop import fields

CASES = sorted(pathlib.Path(__file__).resolve().parent.parent.glob('data/checkpoints/*/config.json'))
WRONG = (0, -1, 10**30, math.nan, True, '8', [8], {}, None)


def read(hf):
  """The model section and blocks of a config.json, held to their ranges."""
  _, family = fields.family(hf)
  made = family.configure(hf, tied=True)
  config = ml_collections.ConfigDict(dict(model=made['model'], blocks=made['blocks'], losses=made['losses']))
  sections.check(config)
  return config


@pytest.mark.parametrize('file', CASES, ids=lambda file: file.parent.name)
def test_every_field_with_every_wrong_value(file):
  hf = json.loads(file.read_text())
  right, refused = experiment.to_json(read(hf)), 0
  for key in hf:
    for wrong in WRONG:
      try:
        read(hf | {key: wrong})
      except errors.UserError as error:
        assert '\n' not in str(error) and len(str(error)) < 700
        refused += 1
  assert refused > 40 and experiment.to_json(read(hf)) == right


SIZES = ('num_hidden_layers', 'num_layers', 'hidden_size', 'd_model', 'num_attention_heads', 'num_heads',
         'vocab_size', 'intermediate_size', 'd_ff', 'num_experts', 'num_local_experts', 'n_routed_experts')


@pytest.mark.parametrize('file', CASES, ids=lambda file: file.parent.name)
@pytest.mark.parametrize('wrong', [0, -3, 2**63, '8', [8], {'a': 1}, math.nan, True], ids=str)
def test_sizes_that_are_none_are_named(file, wrong):
  hf = json.loads(file.read_text())
  for key in set(SIZES) & set(hf):
    if key == 'intermediate_size' and hf['model_type'] == 'qwen2_moe' and not hf.get('mlp_only_layers'):
      continue                           # of dense layers, of which there are none
    with pytest.raises(errors.UserError, match=f'config.json: {key}=.*expected a whole number'):
      read(hf | {key: wrong})
