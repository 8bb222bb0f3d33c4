"""OLMoE (arXiv:2409.02060): gates as softmax gave them, norms of queries and keys, clipped q, k, v."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields

ARCHITECTURE = 'OlmoeForCausalLM'
COPIES = decoder.COPIES
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    *decoder.routed(),
]
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  router = decoder.softmax_router(hf, fields.need(hf, 'num_experts'),
                                  fields.given(hf, 'norm_topk_prob', ranges.Flag, False))
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'),
                       fields.activation(hf, 'hidden_act', 'silu'))
  attention = dict(name='attention', qk_norm=fields.need(hf, 'rms_norm_eps', ranges.PartOf1),
                   clip=fields.given(hf, 'clip_qkv', ranges.Positive),
                   use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  layers = 'm' * fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  return dict(model=decoder.model(hf, layers, tied, attention=attention),
              blocks=dict(m=dict(layer='moe', **sparse)), losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  sparse = decoder.sparse(decoder.last(c)[1], 'deepseek_moe')
  router, experts, attention = sparse['router'], sparse['experts'], decoder.attention(c)
  return decoder.describe(c, ARCHITECTURE, 'olmoe') | dict(
      num_experts=router['num_experts'], num_experts_per_tok=router.get('k', 2),
      norm_topk_prob=decoder.normalized(router), intermediate_size=experts['d_ff'],
      hidden_act=fields.spelled(experts), clip_qkv=attention.get('clip'),
      attention_bias=attention.get('use_bias', False),
      router_aux_loss_coef=decoder.balance(c))
