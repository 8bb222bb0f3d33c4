"""What DeepSeek-V2 and V3, and models with V3's routing, have in common: shared experts, dense first layers.

V2 and V3 have latent attention besides.
"""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

V3 = 'deepseek_v3'                     # the router of V3's routing
SPARSE = 'decoder/layers/{i}/layer/'
LAYERS = [                             # rules of feed-forward layers; experts beside shared ones are `inner`
    *(rule for inner in ('inner/', '') for rule in (
        (f'{SPARSE}{inner}router/w', decoder.LAYER + 'mlp.gate.weight', rules.LINEAR),
        (f'{SPARSE}{inner}router/bias', decoder.LAYER + 'mlp.gate.e_score_correction_bias'),
        (f'{SPARSE}{inner}router/updates', None),
        *decoder.glu(inner + 'experts/', 'mlp.experts.{e}.'))),
    *decoder.glu('shared/', 'mlp.shared_experts.'),
    *decoder.glu('', 'mlp.'),
]


def table(c):
  """Returns the rules of configuration `c`: queries are called by whether they are compressed."""
  compressed = decoder.attention(c).get('q_rank') is not None
  named = dict(wq_down='q_a_proj', wq='q_b_proj' if compressed else 'q_proj', wkv_down='kv_a_proj_with_mqa',
               wkv='kv_b_proj', wo='o_proj')
  norms = dict(q_norm='q_a_layernorm', kv_norm='kv_a_layernorm')
  ours, theirs = 'decoder/layers/{i}/attention/', decoder.LAYER + 'self_attn.'
  return [
      *((ours + w, f'{theirs}{name}.weight', rules.LINEAR) for w, name in named.items()),
      *((f'{ours}b{w[1:]}', f'{theirs}{name}.bias') for w, name in named.items()),
      *((f'{ours}{norm}/scale', f'{theirs}{name}.weight') for norm, name in norms.items()),
      *decoder.REST, *LAYERS,
  ]


def ignored(c):
  """Returns regular expressions of tensors that are not read: tensors of layers that the model lacks.

  The module that predicts a later token is stored as the layer past the last one.
  """
  number = sum(len(unit) * repeats for unit, repeats in c['model']['layers'])
  return (*decoder.IGNORED, rf'model\.layers\.{number}\..*')


def configure(hf, tied, router):
  """Returns the sections model, blocks and losses of a config.json with routers `router`."""
  rope_dim = fields.need(hf, 'qk_rope_head_dim')
  fields.only(hf, head_dim=rope_dim,
              num_key_value_heads=fields.need(hf, 'num_attention_heads'),
              qk_head_dim=rope_dim + fields.need(hf, 'qk_nope_head_dim'))
  attention = dict(name='latent_attention', nope_dim=fields.need(hf, 'qk_nope_head_dim'),
                   value_dim=fields.need(hf, 'v_head_dim'), kv_rank=fields.need(hf, 'kv_lora_rank'),
                   q_rank=fields.given(hf, 'q_lora_rank', ranges.Count),
                   interleaved=fields.given(hf, 'rope_interleave', ranges.Flag, True),
                   logit_scale=decoder.rope(hf)[2],
                   use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  letters, blocks, losses = layers(hf, router)
  model = decoder.model(hf, letters, tied, attention=attention, num_kv_heads=None, head_dim=rope_dim)
  return dict(model=model, blocks=blocks, losses=losses)


def layers(hf, router, period=1):
  """Returns (a letter for each layer, section blocks, section losses) of a config.json.

  Letter d is a dense layer; m has routed experts of `router`, beside shared ones where there are any.

  Args:
    period: after the dense first layers, the layers whose number is a multiple of it are sparse.
  """
  fields.only(hf, moe_layer_freq=period)
  number = fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  activation = fields.activation(hf, 'hidden_act', 'silu')
  first = min(fields.given(hf, 'first_k_dense_replace', ranges.Natural, 0), number)
  width = fields.need(hf, 'moe_intermediate_size')
  sparse = decoder.moe(router, width, activation)
  letters = ''.join('d' if i < first or i % period else 'm' for i in range(number))
  if hf.get('n_shared_experts', ...) in (None, 0):                   # said to be none, and not left out
    blocks = dict(m=dict(layer='moe', **sparse))
  else:
    blocks = dict(m=dict(layer='shared', d_ff=width, num_shared=fields.need(hf, 'n_shared_experts'),
                         activation=activation, inner=dict(name='moe', **sparse)))
  if 'd' in letters:
    blocks['d'] = decoder.dense(fields.need(hf, 'intermediate_size'), activation)
  balance = float(fields.given(hf, 'aux_loss_alpha', ranges.NonNegative, 0.0)), 'mean'
  return letters, blocks, dict(balance=balance)


def v3_router(hf, groups=1, kept=1, normalized=True, scale=1.0):
  """Returns the section of V3's router: sigmoid scores, a bias that only selects, gates over their sum.

  Args:
    groups, kept, normalized, scale: n_group, topk_group, norm_topk_prob and routed_scaling_factor where
      config.json does not have them. A number of groups that is null is 1.
  """
  group = lambda key, default: fields.given(hf, key, ranges.Count, 1 if key in hf else default)
  return dict(
      name=V3, num_experts=fields.same(hf, 'n_routed_experts', 'num_local_experts'),
      k=fields.need(hf, 'num_experts_per_tok'), num_groups=group('n_group', groups),
      kept_groups=group('topk_group', kept),
      normalize_gates=fields.given(hf, 'norm_topk_prob', ranges.Flag, normalized),
      route_scale=float(fields.given(hf, 'routed_scaling_factor', ranges.Positive, scale)))


def describe(c, architecture, model_type, router):
  """Returns the config.json of our configuration `c`, but for the router's own fields."""
  a = decoder.attention(c)
  return decoder.describe(c, architecture, model_type) | describe_layers(c, router) | dict(
      attention_bias=a.get('use_bias', False), qk_nope_head_dim=a.get('nope_dim'),
      v_head_dim=a.get('value_dim'), kv_lora_rank=a.get('kv_rank'), q_lora_rank=a.get('q_rank'),
      qk_rope_head_dim=c['model']['head_dim'], rope_interleave=a.get('interleaved', True))


def describe_layers(c, router):
  """Returns the fields of feed-forward layers with routers of the name `router`, of our configuration `c`."""
  dense, block = decoder.last(c)
  sparse = decoder.sparse(block, router)
  r = sparse['router']
  groups = r.get('num_groups', 1)
  return dict(
      n_routed_experts=r['num_experts'], num_experts_per_tok=r.get('k', 2), n_group=groups,
      topk_group=r.get('kept_groups') or groups, routed_scaling_factor=r.get('route_scale', 1.0),
      norm_topk_prob=r.get('normalize_gates', router == V3), moe_intermediate_size=sparse['experts']['d_ff'],
      hidden_act=fields.spelled(sparse['experts']),
      n_shared_experts=block.get('num_shared', 1) if block['layer'] == 'shared' else None,
      first_k_dense_replace=len(decoder.dense_layers(c)), moe_layer_freq=1,
      intermediate_size=(dense or sparse['experts'])['d_ff'])
