"""Switch Transformers (arXiv:2101.03961) as transformers has them: so many slots an expert and sequence."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import encdec
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'SwitchTransformersForConditionalGeneration'
COPIES = encdec.COPIES
RULES = [
    *encdec.RULES,
    *encdec.feed_forward('mlp', dict(wi='wi', wo='wo')),
    *encdec.feed_forward('mlp.router', {'router/w': 'classifier'}),
    *encdec.feed_forward('mlp.experts.expert_{e}', {'experts/wi[{e}]': 'wi', 'experts/wo[{e}]': 'wo'}),
]
ignored = encdec.ignored


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def copied(c):
  """Returns the names of tensors that are there once more: beside an untied head, each stack's table."""
  tied = c['model'].get('tie_embeddings', False)
  return () if tied else ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  fields.only(hf, router_type='tokens_masked', router_bias=False, feed_forward_proj='relu',
              router_dtype='float32')
  activation, slots = fields.activation(hf, 'dense_act_fn', 'relu'), fields.need(hf, 'expert_capacity')
  width, layers = fields.need(hf, 'd_ff'), fields.need(hf, 'num_layers', fields.LAYERS)
  below = fields.given(hf, 'num_decoder_layers', fields.LAYERS, layers)
  # A factor of 0: `min_capacity` slots, whatever the length of the sequence.
  jitter = float(fields.given(hf, 'router_jitter_noise', ranges.Below1, 0.01))
  router = dict(name='switch', num_experts=fields.need(hf, 'num_experts'), capacity_factor=(0.0, 0.0),
                min_capacity=slots, jitter=jitter)
  letters = [_letters(hf, 'encoder', layers), _letters(hf, 'decoder', below)]
  blocks = dict(d=dict(layer='dense', d_ff=width, activation=activation),
                m=dict(layer='moe', executor='gather', group_size=None, router=router,
                       experts=dict(name='mlp', d_ff=width, activation=activation)))
  coefficient = lambda key: (float(fields.given(hf, key, ranges.NonNegative, 0.0)), 'mean')
  return dict(model=encdec.model(hf, *letters, tied, True),
              blocks={letter: block for letter, block in blocks.items() if letter in ''.join(letters)},
              losses=dict(balance=coefficient('router_aux_loss_coef'), z=coefficient('router_z_loss_coef')))


def _letters(hf, stack, layers):
  """A letter a layer of a stack: of every step-th period the second is sparse; without step none."""
  sparse = fields.need(hf, f'num_sparse_{stack}_layers', ranges.Whole(0, layers))
  step = layers // sparse if sparse else layers
  fields.only(hf, **{f'{stack}_sparse_step': step})
  return ''.join('m' if step and (i % step == 1 or step == 1) else 'd' for i in range(layers))


def describe(c):
  """Returns the config.json of our configuration `c`."""
  common = encdec.describe(c, ARCHITECTURE, 'switch_transformers')
  sparse = [b for b in c['blocks'].values() if b['layer'] == 'moe']
  if not sparse or sparse[0]['router']['name'] != 'switch':
    raise errors.UserError('no layer has the router switch; nearest: --to t5')
  router, experts = sparse[0]['router'], sparse[0]['experts']
  if 'd_ff' not in experts:
    raise errors.UserError(f"the sparse layers have experts {experts['name']!r}; nearest: mlp")
  layers = lambda stack: [c['blocks'][letter]['layer'] for letter in rules.letters(c['model'][stack])]
  loss = lambda name: c.get('losses', {}).get(name, (0.0,))[0]
  return common | dict(
      d_ff=experts['d_ff'], dense_act_fn=fields.spelled(experts, 'relu'),
      num_experts=router['num_experts'], expert_capacity=router.get('min_capacity', 4),
      num_sparse_encoder_layers=layers('encoder').count('moe'),
      num_sparse_decoder_layers=layers('decoder').count('moe'),
      router_jitter_noise=router.get('jitter', 0.01), router_aux_loss_coef=loss('balance'),
      router_z_loss_coef=loss('z'), router_bias=False, router_dtype='float32')
