"""Qwen2-MoE (arXiv:2407.10671): narrow experts beside a shared one behind a sigmoid gate; biased q, k, v."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'Qwen2MoeForCausalLM'
COPIES = decoder.COPIES
SPARSE = 'decoder/layers/{i}/layer/'
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    (SPARSE + 'gate', decoder.LAYER + 'mlp.shared_expert_gate.weight', rules.LINEAR),
    (SPARSE + 'inner/router/w', decoder.LAYER + 'mlp.gate.weight', rules.LINEAR),
    *decoder.glu('shared/', 'mlp.shared_expert.'),
    *decoder.glu('inner/experts/', 'mlp.experts.{e}.'),
    *decoder.glu('', 'mlp.'),
]
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  number = fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  activation = fields.activation(hf, 'hidden_act', 'silu')
  router = decoder.softmax_router(hf, fields.need(hf, 'num_experts'),
                                  fields.given(hf, 'norm_topk_prob', ranges.Flag, False))
  sparse = decoder.moe(router, fields.need(hf, 'moe_intermediate_size'), activation)
  layers = decoder.placed(hf, number)
  blocks = dict(m=dict(layer='shared', d_ff=fields.need(hf, 'shared_expert_intermediate_size'), num_shared=1,
                       activation=activation, sigmoid_gate=True, inner=dict(name='moe', **sparse)))
  if 'd' in layers:
    blocks['d'] = decoder.dense(fields.need(hf, 'intermediate_size'), activation)
  if fields.given(hf, 'use_sliding_window', ranges.Flag, False):
    # Versions of transformers put the window into different layers, unless layer_types names them.
    if decoder.KINDS[1] not in fields.need(hf, 'layer_types', ranges.Many(ranges.Text)):
      raise errors.UserError('config.json: use_sliding_window=True, and no entry of layer_types is '
                             'sliding_attention; nearest: use_sliding_window=false')
    layers, blocks = decoder.windowed(layers, blocks, decoder.windows(hf, number, decoder.KINDS))
  else:
    fields.only(hf, layer_types=['full_attention'] * number)
  attention = dict(name='attention', qkv_bias=fields.given(hf, 'qkv_bias', ranges.Flag, True))
  return dict(model=decoder.model(hf, layers, tied, attention=attention), blocks=blocks,
              losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  dense, shared = decoder.last(c)
  sparse = decoder.sparse(shared, 'deepseek_moe')
  router, windows = sparse['router'], decoder.describe_windows(c)
  return decoder.describe(c, ARCHITECTURE, 'qwen2_moe') | windows | dict(
      num_experts=router['num_experts'], num_experts_per_tok=router.get('k', 2),
      norm_topk_prob=decoder.normalized(router), moe_intermediate_size=sparse['experts']['d_ff'],
      shared_expert_intermediate_size=shared['d_ff'] * shared.get('num_shared', 1),
      hidden_act=fields.spelled(sparse['experts']), mlp_only_layers=decoder.dense_layers(c),
      decoder_sparse_step=1, intermediate_size=(dense or sparse['experts'])['d_ff'],
      qkv_bias=decoder.attention(c).get('qkv_bias', False),
      use_sliding_window=windows['sliding_window'] is not None, max_window_layers=0,
      router_aux_loss_coef=decoder.balance(c))
