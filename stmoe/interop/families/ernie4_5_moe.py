"""ERNIE 4.5 (technical report, 2025): a bias selects by softmax, gates over their sum, sparse by interval."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'Ernie4_5_MoeForCausalLM'
COPIES = decoder.COPIES
DEFAULTS = dict(num_key_value_heads=4, rms_norm_eps=1e-5)            # where config.json does not say it
THETA = 5e5
ROUTER = 'loss_free_balancing'
BIAS = 'mlp.moe_statics.e_score_correction_bias'
RULES = [
    *decoder.ATTENTION, *decoder.REST,
    *decoder.glu('', 'mlp.'),
    *decoder.glu('shared/', 'mlp.shared_experts.'),
    *(rule for inner in ('', 'inner/') for rule in (                 # without and with shared experts
        (f'decoder/layers/{{i}}/layer/{inner}router/w', decoder.LAYER + 'mlp.gate.weight', rules.LINEAR),
        (f'decoder/layers/{{i}}/layer/{inner}router/bias', f'{decoder.LAYER}{BIAS}[0]'),
        *decoder.glu(f'{inner}experts/', 'mlp.experts.{e}.'))),
]
copied = decoder.copied


def ignored(c):
  """Returns regular expressions of tensors that are not read: those of modules that predict later tokens."""
  return (*decoder.IGNORED, r'(model\.)?mtp_.*')


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  hf = DEFAULTS | hf
  biased = fields.given(hf, 'use_bias', ranges.Flag, False)
  activation = fields.activation(hf, 'hidden_act', 'silu')
  layers = _letters(hf, fields.need(hf, 'num_hidden_layers', fields.LAYERS))
  blocks = {}
  if 'm' in layers:
    blocks['m'] = _sparse(hf, activation, biased)
  if 'd' in layers:
    blocks['d'] = decoder.dense(fields.need(hf, 'intermediate_size'), activation) | dict(use_bias=biased)
  attention = dict(name='attention', use_bias=biased, interleaved=True)
  model = decoder.model(hf, layers, tied, theta=THETA, attention=attention, head_bias=biased)
  return dict(model=model, blocks=blocks, losses=decoder.losses(hf))


def _letters(hf, number):
  """A letter for each layer: m, or d where the interval or the first and last sparse layer leave it out."""
  interval = fields.given(hf, 'moe_layer_interval', ranges.Count, 1)
  first = fields.given(hf, 'moe_layer_start_index', ranges.Natural, 1)
  last = fields.given(hf, 'moe_layer_end_index', ranges.Whole(-1), -1)
  last = number - 1 if last == -1 else last
  return ''.join('d' if (i + 1) % interval or not first <= i <= last else 'm' for i in range(number))


def _sparse(hf, activation, biased):
  """The sparse block; shared experts are one network, whose width is theirs together."""
  width = fields.need(hf, 'moe_intermediate_size')
  router = dict(name=ROUTER, num_experts=fields.same(hf, 'moe_num_experts', 'num_experts'),
                k=fields.same(hf, 'moe_k', 'num_experts_per_tok'), scores='softmax', normalize_gates=True,
                least_sum=float(fields.given(hf, 'moe_norm_min', ranges.NonNegative, 1e-12)))
  sparse = decoder.moe(router, width, activation)
  shared = fields.given(hf, 'moe_num_shared_experts', ranges.Natural, 2)
  if not shared:
    return dict(layer='moe', **sparse)
  return dict(layer='shared', d_ff=width, num_shared=shared, activation=activation, use_bias=biased,
              inner=dict(name='moe', **sparse))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  letters = rules.letters(c['model']['layers'])
  dense = [letter for letter in letters if c['blocks'][letter]['layer'] == 'dense']
  places = [i for i, letter in enumerate(letters) if letter not in dense]
  block = c['blocks'][letters[places[-1] if places else -1]]
  sparse = decoder.sparse(block, ROUTER)
  router, experts = sparse['router'], sparse['experts']
  shared = block['d_ff'] * block.get('num_shared', 1) if block['layer'] == 'shared' else 0
  return decoder.describe(c, ARCHITECTURE, 'ernie4_5_moe') | dict(
      moe_num_experts=router['num_experts'], moe_k=router.get('k', 2),
      moe_norm_min=router.get('least_sum') or 0.0, moe_intermediate_size=experts['d_ff'],
      moe_num_shared_experts=shared // experts['d_ff'], hidden_act=fields.spelled(experts),
      intermediate_size=c['blocks'][dense[0]]['d_ff'] if dense else experts['d_ff'],
      moe_layer_start_index=places[0], moe_layer_end_index=places[-1],
      moe_layer_interval=min((b - a for a, b in zip(places, places[1:])), default=1),
      use_bias=decoder.attention(c).get('use_bias', False),
      router_aux_loss_coef=decoder.balance(c))
