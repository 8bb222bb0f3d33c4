"""DeepSeek-V2 (arXiv:2405.04434): softmax gates times a scale, limited to the best devices."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields

ARCHITECTURE = 'DeepseekV2ForCausalLM'
COPIES = decoder.COPIES
ROUTER = 'deepseek_moe'
table = deepseek.table
copied = decoder.copied
ignored = decoder.ignored


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  fields.only(hf, scoring_func='softmax', norm_topk_prob=False, mlp_bias=False)
  groups = 1, 1
  if hf.get('topk_method', 'greedy') != 'greedy':
    fields.only(hf, topk_method='group_limited_greedy')
    groups = tuple(fields.given(hf, key, ranges.Count, 1) for key in ('n_group', 'topk_group'))
  return deepseek.configure(hf, tied, dict(
      name=ROUTER, num_experts=fields.need(hf, 'n_routed_experts'), k=fields.need(hf, 'num_experts_per_tok'),
      num_groups=groups[0], kept_groups=groups[1], normalize_gates=False,
      route_scale=float(fields.given(hf, 'routed_scaling_factor', ranges.Positive, 1.0))))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  router = decoder.sparse(decoder.last(c)[1], ROUTER)['router']
  method = 'group_limited_greedy' if router.get('num_groups', 1) > 1 else 'greedy'
  return deepseek.describe(c, ARCHITECTURE, 'deepseek_v2', ROUTER) | dict(
      norm_topk_prob=False, scoring_func='softmax', topk_method=method)
