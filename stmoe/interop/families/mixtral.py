"""Mixtral (arXiv:2401.04088): softmax over all experts, the best k over their sum, grouped queries."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields

ARCHITECTURE = 'MixtralForCausalLM'
COPIES = decoder.COPIES
THETA = 1e6                            # where config.json does not say it
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
  """Returns the sections model, blocks and losses of a config.json."""
  router = decoder.softmax_router(hf, fields.need(hf, 'num_local_experts'), True)
  sparse = decoder.moe(router, fields.need(hf, 'intermediate_size'),
                       fields.activation(hf, 'hidden_act', 'silu'))
  return dict(model=decoder.model(hf, 'm' * fields.need(hf, 'num_hidden_layers', fields.LAYERS), tied,
                                  theta=THETA, window=fields.given(hf, 'sliding_window', ranges.Count)),
              blocks=dict(m=dict(layer='moe', **sparse)), losses=decoder.losses(hf))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  sparse = decoder.sparse(decoder.last(c)[1], 'deepseek_moe')
  if not decoder.normalized(sparse['router']):
    raise errors.UserError(f'{ARCHITECTURE} has several gates over their sum; nearest: an OLMoE, whose gates '
                           'may be probabilities')
  return decoder.describe(c, ARCHITECTURE, 'mixtral') | dict(
      num_local_experts=sparse['router']['num_experts'], num_experts_per_tok=sparse['router'].get('k', 2),
      intermediate_size=sparse['experts']['d_ff'], hidden_act=fields.spelled(sparse['experts']),
      sliding_window=c['model'].get('window'),
      router_aux_loss_coef=decoder.balance(c))
