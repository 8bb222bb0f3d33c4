"""FlexOlmo (arXiv:2507.07024): norms of what sub-layers give, not of what they get; gates as OLMoE's."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields

ARCHITECTURE = 'FlexOlmoForCausalLM'
COPIES = decoder.COPIES
THETA = 5e5                            # where config.json does not say it
RULES = [
    ('decoder/layers/{i}/attention_norm/scale', decoder.LAYER + 'post_attention_layernorm.weight'),
    ('decoder/layers/{i}/layer_norm/scale', decoder.LAYER + 'post_feedforward_layernorm.weight'),
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
  fields.only(hf, clip_qkv=None)
  router = decoder.softmax_router(hf, fields.same(hf, 'num_experts', 'num_local_experts'),
                                  fields.given(hf, 'norm_topk_prob', ranges.Flag, False))
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'),
                       fields.activation(hf, 'hidden_act', 'silu'))
  attention = dict(name='attention', qk_norm=fields.need(hf, 'rms_norm_eps', ranges.PartOf1),
                   use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  layers = 'm' * fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  return dict(model=decoder.model(hf, layers, tied, theta=THETA, attention=attention, norm_place='output'),
              blocks=dict(m=dict(layer='moe', **sparse)), losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  sparse = decoder.sparse(decoder.last(c)[1], 'deepseek_moe')
  router, experts = sparse['router'], sparse['experts']
  return decoder.describe(c, ARCHITECTURE, 'flex_olmo') | dict(
      num_experts=router['num_experts'], num_experts_per_tok=router.get('k', 2),
      norm_topk_prob=decoder.normalized(router), intermediate_size=experts['d_ff'],
      hidden_act=fields.spelled(experts),
      attention_bias=decoder.attention(c).get('use_bias', False),
      router_aux_loss_coef=decoder.balance(c))
