"""DeepSeekMoE-16B (arXiv:2401.06066): softmax gates of many narrow experts, beside shared ones.

The code beside the released weights is not run: what it computes is written here anew.
"""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'DeepseekForCausalLM'
COPIES = decoder.COPIES
ROUTER = 'deepseek_moe'
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return [*decoder.ATTENTION, *decoder.REST, *deepseek.LAYERS]


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json; one gate alone is never 1."""
  fields.only(hf, scoring_func='softmax',
              head_dim=fields.need(hf, 'hidden_size') // fields.need(hf, 'num_attention_heads'))
  normalized = fields.given(hf, 'norm_topk_prob', ranges.Flag, False)
  router = decoder.softmax_router(hf, fields.need(hf, 'n_routed_experts'),
                                  normalized and fields.need(hf, 'num_experts_per_tok') > 1)
  period = fields.given(hf, 'moe_layer_freq', ranges.Count, 1)
  letters, blocks, losses = deepseek.layers(hf, router, period)
  attention = dict(name='attention', use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  return dict(model=decoder.model(hf, letters, tied, attention=attention), blocks=blocks, losses=losses)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  letters = rules.letters(c['model']['layers'])
  sparse = [i for i, letter in enumerate(letters) if c['blocks'][letter]['layer'] != 'dense'] or [0]
  return (decoder.describe(c, ARCHITECTURE, 'deepseek') | deepseek.describe_layers(c, ROUTER)
          | dict(scoring_func='softmax', first_k_dense_replace=sparse[0],
                 moe_layer_freq=(*sparse, sparse[0] + 1)[1] - sparse[0],
                 attention_bias=decoder.attention(c).get('use_bias', False)))
