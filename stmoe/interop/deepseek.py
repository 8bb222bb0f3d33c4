"""What DeepSeek-V2 and V3 have in common: latent attention, shared experts, dense first layers."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

SPARSE = 'decoder/layers/{i}/layer/inner/'


def table(c):
  """Returns the rules of configuration `c`: queries are called by whether they are compressed."""
  compressed = (c['model'].get('attention') or {}).get('q_rank') is not None
  named = dict(wq_down='q_a_proj', wq='q_b_proj' if compressed else 'q_proj', wkv_down='kv_a_proj_with_mqa',
               wkv='kv_b_proj', wo='o_proj')
  norms = dict(q_norm='q_a_layernorm', kv_norm='kv_a_layernorm')
  ours, theirs = 'decoder/layers/{i}/attention/', decoder.LAYER + 'self_attn.'
  return [
      *((ours + w, f'{theirs}{name}.weight', rules.LINEAR) for w, name in named.items()),
      *((f'{ours}{norm}/scale', f'{theirs}{name}.weight') for norm, name in norms.items()),
      *decoder.REST,
      (SPARSE + 'router/w', decoder.LAYER + 'mlp.gate.weight', rules.LINEAR),
      (SPARSE + 'router/bias', decoder.LAYER + 'mlp.gate.e_score_correction_bias'),
      (SPARSE + 'router/updates', None),
      *decoder.glu('shared/', 'mlp.shared_experts.'),
      *decoder.glu('inner/experts/', 'mlp.experts.{e}.'),
      *decoder.glu('', 'mlp.'),
  ]


def configure(hf, tied, router):
  """Returns the sections model, blocks and losses of a config.json with routers `router`."""
  rope_dim = fields.need(hf, 'qk_rope_head_dim')
  fields.only(hf, attention_bias=False, moe_layer_freq=1, head_dim=rope_dim,
              num_key_value_heads=fields.need(hf, 'num_attention_heads'),
              qk_head_dim=rope_dim + fields.need(hf, 'qk_nope_head_dim'))
  number = fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  activation = fields.activation(hf, 'hidden_act', 'silu')
  first = min(fields.given(hf, 'first_k_dense_replace', ranges.Natural, 0), number)
  width = fields.need(hf, 'moe_intermediate_size')
  sparse = decoder.moe(router, width, activation)
  blocks = dict(m=dict(layer='shared', d_ff=width, num_shared=fields.need(hf, 'n_shared_experts'),
                       activation=activation, inner=dict(name='moe', **sparse)))
  if first:
    blocks['d'] = decoder.dense(fields.need(hf, 'intermediate_size'), activation)
  attention = dict(name='latent_attention', nope_dim=fields.need(hf, 'qk_nope_head_dim'),
                   value_dim=fields.need(hf, 'v_head_dim'), kv_rank=fields.need(hf, 'kv_lora_rank'),
                   q_rank=fields.given(hf, 'q_lora_rank', ranges.Count),
                   interleaved=fields.given(hf, 'rope_interleave', ranges.Flag, True),
                   logit_scale=decoder.rope(hf)[2])
  model = decoder.model(hf, 'd' * first + 'm' * (number - first), tied, attention=attention,
                        num_kv_heads=None, head_dim=rope_dim)
  balance = float(fields.given(hf, 'aux_loss_alpha', ranges.NonNegative, 0.0)), 'mean'
  return dict(model=model, blocks=blocks, losses=dict(balance=balance))


def describe(c, architecture, model_type, router):
  """Returns the config.json of our configuration `c`, but for the router's own fields."""
  first, block = decoder.last(c)
  sparse = decoder.sparse(block, router)
  a, r = c['model'].get('attention') or {}, sparse['router']
  letters = rules.letters(c['model']['layers'])
  leading = sum(c['blocks'][letter]['layer'] == 'dense' for letter in letters)
  groups = r.get('num_groups', 1)
  return decoder.describe(c, architecture, model_type) | dict(
      n_routed_experts=r['num_experts'], num_experts_per_tok=r.get('k', 2), n_group=groups,
      topk_group=r.get('kept_groups') or groups, routed_scaling_factor=r.get('route_scale', 1.0),
      moe_intermediate_size=sparse['experts']['d_ff'], hidden_act=sparse['experts'].get('activation', 'gelu'),
      n_shared_experts=block.get('num_shared', 1), first_k_dense_replace=leading, attention_bias=False,
      intermediate_size=first['d_ff'] if leading else sparse['experts']['d_ff'],
      qk_nope_head_dim=a.get('nope_dim'), v_head_dim=a.get('value_dim'), kv_lora_rank=a.get('kv_rank'),
      q_lora_rank=a.get('q_rank'), qk_rope_head_dim=c['model']['head_dim'],
      rope_interleave=a.get('interleaved', True), moe_layer_freq=1)
