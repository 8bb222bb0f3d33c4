"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, a bias that only selects, gates over their sum.

The module that predicts a later token (layers past the last one) is not read.
"""

from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields

ARCHITECTURE = 'DeepseekV3ForCausalLM'
COPIES = decoder.COPIES
table = deepseek.table
copied = decoder.copied
ignored = deepseek.ignored


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  fields.only(hf, scoring_func='sigmoid', topk_method='noaux_tc')
  router = deepseek.v3_router(hf, groups=8, kept=4, scale=2.5)
  return deepseek.configure(dict(first_k_dense_replace=3) | hf, tied, router)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  return deepseek.describe(c, ARCHITECTURE, 'deepseek_v3', deepseek.V3) | dict(
      scoring_func='sigmoid', topk_method='noaux_tc')
