"""What both sparse families of Granite have in common: multipliers, stacked experts, gates of the chosen."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

ROUTER = 'deepseek_moe'
# Ours -> theirs. The fourth, attention_multiplier, is in the section of attention.
MULTIPLIERS = dict(embed_factor='embedding_multiplier', residual_factor='residual_multiplier',
                   logits_divisor='logits_scaling')


def table(inner=''):
  """Returns the rules of a model whose sparse layer is `inner` of its block's layer."""
  ours, theirs = f'decoder/layers/{{i}}/layer/{inner}', decoder.LAYER + 'block_sparse_moe.'
  return [
      *decoder.ATTENTION, *decoder.REST,
      (ours + 'router/w', theirs + 'router.layer.weight', rules.LINEAR),
      (ours + 'experts/wi[{e}]', theirs + 'input_linear.weight[{e},0/2]', rules.LINEAR),
      (ours + 'experts/wg[{e}]', theirs + 'input_linear.weight[{e},1/2]', rules.LINEAR),
      (ours + 'experts/wo[{e}]', theirs + 'output_linear.weight[{e}]', rules.LINEAR),
  ]


def configure(hf, tied):
  """Returns (section model, fields of the sparse layer, losses) of a config.json.

  Gates are a softmax over the logits of the chosen: that over all experts, over the sum of the chosen.
  """
  number = lambda key: float(fields.given(hf, key, ranges.Positive, 1.0))
  router = decoder.softmax_router(hf, fields.same(hf, 'num_local_experts', 'num_experts'), True)
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'),
                       fields.activation(hf, 'hidden_act', 'silu'))
  attention = dict(name='attention', use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False),
                   scale=number('attention_multiplier'))
  fields.only(hf, position_embedding_type='rope')
  model = decoder.model(hf, 'm' * fields.need(hf, 'num_hidden_layers', fields.LAYERS), tied,
                        attention=attention, **{ours: number(key) for ours, key in MULTIPLIERS.items()})
  return model, sparse, decoder.losses(hf)


def describe(c, architecture, model_type):
  """Returns the config.json of our configuration `c`, but for shared experts."""
  model, sparse = c['model'], decoder.sparse(decoder.last(c)[1], ROUTER)
  attention, experts = decoder.attention(c), sparse['experts']
  return decoder.describe(c, architecture, model_type) | {
      key: model.get(ours, 1.0) for ours, key in MULTIPLIERS.items()} | dict(
          attention_multiplier=attention.get('scale') or model['head_dim'] ** -0.5,
          attention_bias=attention.get('use_bias', False), num_local_experts=sparse['router']['num_experts'],
          num_experts_per_tok=sparse['router'].get('k', 2), intermediate_size=experts['d_ff'],
          hidden_act=fields.spelled(experts),
          router_aux_loss_coef=decoder.balance(c))
