"""Qwen3-MoE (arXiv:2505.09388): norms of the queries and keys of each head, no shared expert."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields

ARCHITECTURE = 'Qwen3MoeForCausalLM'
COPIES = decoder.COPIES
# How many there are: as released, and as transformers 5 writes it.
EXPERTS = ('num_experts', 'num_local_experts')
WINDOW = 4096                          # where config.json does not say it
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    *decoder.routed(),
    *decoder.glu('', 'mlp.'),
]
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json.

  With use_sliding_window the window is that of all layers, as in transformers 5. Versions before took
  max_window_layers into account; no released model has a window.
  """
  number = fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  windowed = fields.given(hf, 'use_sliding_window', ranges.Flag, False)
  window = fields.given(hf, 'sliding_window', ranges.Count, WINDOW if 'sliding_window' not in hf else None)
  window = window if windowed else None
  fields.only(hf, layer_types=['full_attention' if window is None else 'sliding_attention'] * number)
  router = decoder.softmax_router(hf, fields.same(hf, *EXPERTS),
                                  fields.given(hf, 'norm_topk_prob', ranges.Flag, False))
  activation = fields.activation(hf, 'hidden_act', 'silu')
  layers = decoder.placed(hf, number)
  sparse = decoder.moe(router, fields.need(hf, 'moe_intermediate_size'), activation)
  blocks = dict(m=dict(layer='moe', **sparse))
  if 'd' in layers:
    blocks['d'] = decoder.dense(fields.need(hf, 'intermediate_size'), activation)
  attention = decoder.head_norms(hf) | dict(use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  return dict(model=decoder.model(hf, layers, tied, attention=attention, window=window), blocks=blocks,
              losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  dense, block = decoder.last(c)
  sparse = decoder.sparse(block, 'deepseek_moe')
  router, experts, window = sparse['router'], sparse['experts'], c['model'].get('window')
  number = dict.fromkeys(EXPERTS, router['num_experts'])
  return decoder.describe(c, ARCHITECTURE, 'qwen3_moe') | number | dict(
      num_experts_per_tok=router.get('k', 2), norm_topk_prob=decoder.normalized(router),
      moe_intermediate_size=experts['d_ff'], intermediate_size=(dense or experts)['d_ff'],
      hidden_act=fields.spelled(experts), mlp_only_layers=decoder.dense_layers(c),
      decoder_sparse_step=1, attention_bias=decoder.attention(c).get('use_bias', False),
      use_sliding_window=window is not None, sliding_window=window,
      router_aux_loss_coef=decoder.balance(c))
