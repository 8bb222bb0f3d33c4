"""GLM-4.5 (arXiv:2508.06471): DeepSeek-V3's routing beside attention that turns a part of each head.

The module that predicts a later token (layers past the last one) is not read.
"""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields

ARCHITECTURE = 'Glm4MoeForCausalLM'
COPIES = decoder.COPIES
# Where config.json does not say it; the second is the part of a head that is turned.
DEFAULTS, PART = dict(first_k_dense_replace=1, n_shared_experts=1), 0.5
ignored = deepseek.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return [*decoder.ATTENTION, *decoder.REST, *deepseek.LAYERS]


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  fields.only(hf, scoring_func='sigmoid', topk_method='noaux_tc')
  hf = DEFAULTS | hf
  letters, blocks, losses = deepseek.layers(hf, deepseek.v3_router(hf))
  normed = fields.given(hf, 'use_qk_norm', ranges.Flag, False)
  attention = (decoder.head_norms(hf) if normed else dict(name='attention')) | dict(
      qkv_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  return dict(model=decoder.model(hf, letters, tied, part=PART, attention=attention), blocks=blocks,
              losses=losses)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  attention = decoder.attention(c)
  return (dict(partial_rotary_factor=1.0) | decoder.describe(c, ARCHITECTURE, 'glm4_moe')
          | deepseek.describe_layers(c, deepseek.V3)
          | dict(attention_bias=attention.get('qkv_bias', False),
                 use_qk_norm=attention.get('qk_norm') is not None))
