"""Phi-3.5-MoE (arXiv:2404.14219; GRIN, arXiv:2409.12136): SparseMixer gates, norms with mean and bias."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields

ARCHITECTURE = 'PhimoeForCausalLM'
ALIASES = ('PhiMoEForCausalLM',)
COPIES = decoder.COPIES
DEFAULTS = dict(num_key_value_heads=8, rms_norm_eps=1e-5)            # where config.json does not say it
THETA = 1e6
ROUTER = 'grin'
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    *decoder.routed('block_sparse_moe.', ('w1', 'w3', 'w2')),
]
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json.

  The threshold of the gates is a field called jitter noise, and holds in evaluation, too.
  """
  hf = DEFAULTS | hf
  fields.only(hf, num_experts_per_tok=2)                             # there are two gates, whatever it says
  router = dict(name=ROUTER, num_experts=fields.same(hf, 'num_local_experts', 'num_experts'), k=2,
                epsilon=float(fields.given(hf, 'router_jitter_noise', ranges.NonNegative, 0.01)),
                input_jitter=float(fields.given(hf, 'input_jitter_noise', ranges.Below1, 0.0)))
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'),
                       fields.activation(hf, 'hidden_act', 'silu'))
  attention = dict(name='attention', use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  model = decoder.model(hf, 'm' * fields.need(hf, 'num_hidden_layers', fields.LAYERS), tied, theta=THETA,
                        attention=attention, norm='layer',
                        head_bias=fields.given(hf, 'lm_head_bias', ranges.Flag, False),
                        window=fields.given(hf, 'sliding_window', ranges.Count))
  return dict(model=model, blocks=dict(m=dict(layer='moe', **sparse)), losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  sparse, model = decoder.sparse(decoder.last(c)[1], ROUTER), c['model']
  router, experts = sparse['router'], sparse['experts']
  return decoder.describe(c, ARCHITECTURE, 'phimoe') | dict(
      num_local_experts=router['num_experts'], num_experts_per_tok=router.get('k', 2),
      router_jitter_noise=router.get('epsilon', 0.1), input_jitter_noise=router.get('input_jitter', 0.0),
      intermediate_size=experts['d_ff'], hidden_act=fields.spelled(experts),
      attention_bias=decoder.attention(c).get('use_bias', False),
      lm_head_bias=model.get('head_bias', False), sliding_window=model.get('window'),
      router_aux_loss_coef=decoder.balance(c))
