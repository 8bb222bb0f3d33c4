"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, a bias that only selects, gates over their sum.

The module that predicts a later token (layers past the last one) is not read.
"""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields

ARCHITECTURE = 'DeepseekV3ForCausalLM'
COPIES = decoder.COPIES
ROUTER = 'deepseek_v3'
table = deepseek.table
copied = decoder.copied


def ignored(c):
  """Returns regular expressions of tensors that are not read: tensors of layers that the model lacks."""
  number = sum(len(unit) * repeats for unit, repeats in c['model']['layers'])
  return (*decoder.IGNORED, rf'model\.layers\.{number}\..*')


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  fields.only(hf, scoring_func='sigmoid', topk_method='noaux_tc')
  return deepseek.configure(hf, tied, dict(
      name=ROUTER, num_experts=fields.need(hf, 'n_routed_experts'), k=fields.need(hf, 'num_experts_per_tok'),
      num_groups=fields.given(hf, 'n_group', ranges.Count, 1 if 'n_group' in hf else 8),
      kept_groups=fields.given(hf, 'topk_group', ranges.Count, 1 if 'topk_group' in hf else 4),
      normalize_gates=fields.given(hf, 'norm_topk_prob', ranges.Flag, True),
      route_scale=float(fields.given(hf, 'routed_scaling_factor', ranges.Positive, 2.5))))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  router = decoder.sparse(decoder.last(c)[1], ROUTER)['router']
  return deepseek.describe(c, ARCHITECTURE, 'deepseek_v3', ROUTER) | dict(
      norm_topk_prob=router.get('normalize_gates', True), scoring_func='sigmoid', topk_method='noaux_tc')
