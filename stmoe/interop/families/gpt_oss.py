"""gpt-oss (arXiv:2508.10925): sinks, windows by layer, biases everywhere, experts with a clamped product."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'GptOssForCausalLM'
COPIES = decoder.COPIES
# Where config.json does not say it.
DEFAULTS = dict(head_dim=64, num_key_value_heads=8, sliding_window=128, rms_norm_eps=1e-5, swiglu_alpha=1.702,
                swiglu_limit=7.0, attention_bias=True, hidden_act='silu')
THETA = 150000.0
YARN = dict(rope_type='yarn', factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=4096)
EXPERTS = ('num_local_experts', 'num_experts')
CHOICES = ('num_experts_per_tok', 'experts_per_token')
OFFSET = 1.0                             # of what is multiplied by the gate
LAYER, BANK = 'decoder/layers/{i}/layer/', decoder.LAYER + 'mlp.experts.'
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    ('decoder/layers/{i}/attention/sinks', decoder.LAYER + 'self_attn.sinks'),
    (LAYER + 'router/w', decoder.LAYER + 'mlp.router.weight', rules.LINEAR),
    (LAYER + 'router/b', decoder.LAYER + 'mlp.router.bias'),
    (LAYER + 'experts/wi[{e}]', BANK + 'gate_up_proj[{e},:,0::2]'),
    (LAYER + 'experts/wg[{e}]', BANK + 'gate_up_proj[{e},:,1::2]'),
    (LAYER + 'experts/bi[{e}]', BANK + 'gate_up_proj_bias[{e},0::2]'),
    (LAYER + 'experts/bg[{e}]', BANK + 'gate_up_proj_bias[{e},1::2]'),
    (LAYER + 'experts/wo[{e}]', BANK + 'down_proj[{e}]'),
    (LAYER + 'experts/bo[{e}]', BANK + 'down_proj_bias[{e}]'),
]
# The tensors that releases have in MXFP4, and what their config.json says of it.
PACKED = r'.*\.mlp\.experts\.(gate_up|down)_proj'
PACKING = dict(quant_method='mxfp4', modules_to_not_convert=[
    'model.layers.*.self_attn', 'model.layers.*.mlp.router', 'model.embed_tokens', 'lm_head'])
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  hf = DEFAULTS | _positions(hf)
  fields.only(hf, hidden_act='silu')
  hf = hf | dict(num_experts_per_tok=fields.same(hf, *CHOICES))
  router = decoder.softmax_router(hf, fields.same(hf, *EXPERTS), True) | dict(use_bias=True)
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'), 'silu')
  sparse['experts'] |= dict(use_bias=True, offset=OFFSET,
                            slope=float(fields.need(hf, 'swiglu_alpha', ranges.Positive)),
                            limit=float(fields.need(hf, 'swiglu_limit', ranges.Positive)))
  number = fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  windows = decoder.windows(hf, number, ('sliding_attention', 'full_attention'))
  letters, blocks = decoder.windowed('m' * number, dict(m=dict(layer='moe', **sparse)), windows)
  attention = dict(name='attention', sinks=True, use_bias=fields.need(hf, 'attention_bias', ranges.Flag))
  return dict(model=decoder.model(hf, letters, tied, theta=THETA, attention=attention), blocks=blocks,
              losses=decoder.losses(hf))


def _positions(hf):
  """`hf` with fields of rotary positions; without them the positions are YARN's."""
  if hf.get('rope_parameters') is not None or hf.get('rope_scaling') is not None:
    return hf
  if 'rope_scaling' in hf:
    raise errors.UserError('config.json: rope_scaling=null is plain positions to transformers 4, YaRN to 5; '
                           "nearest: rope_parameters={'rope_type': 'default', 'rope_theta': ...}")
  return hf | dict(rope_scaling=YARN)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  sparse = decoder.sparse(decoder.last(c)[1], 'deepseek_moe')
  router, experts, attention = sparse['router'], sparse['experts'], decoder.attention(c)
  return decoder.describe(c, ARCHITECTURE, 'gpt_oss') | decoder.describe_windows(c) | dict(
      num_local_experts=router['num_experts'], num_experts_per_tok=router.get('k', 2),
      intermediate_size=experts['d_ff'], hidden_act=fields.spelled(experts),
      swiglu_alpha=experts.get('slope', 1.0), swiglu_limit=experts.get('limit') or DEFAULTS['swiglu_limit'],
      attention_bias=attention.get('use_bias', False),
      router_aux_loss_coef=decoder.balance(c))
