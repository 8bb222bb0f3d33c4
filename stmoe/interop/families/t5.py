"""T5 1.0 and 1.1 (arXiv:1910.10683): dense encoder-decoders, ReLU or gated GELU.

A head is tied if its tensor says so: configurations of different ages say it differently.
"""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import encdec
from stmoe.interop import fields

ARCHITECTURE = 'T5ForConditionalGeneration'
COPIES = encdec.COPIES
PLAIN = encdec.RULES + encdec.feed_forward('DenseReluDense', dict(wi='wi', wo='wo'))
GATED = encdec.RULES + encdec.feed_forward('DenseReluDense', dict(wi='wi_0', wg='wi_1', wo='wo'))
ignored = encdec.ignored
copied = encdec.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return GATED if c['blocks']['d'].get('gated') else PLAIN


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  projection = fields.given(hf, 'feed_forward_proj', ranges.Text, 'relu')
  gated = projection.startswith('gated-')
  # 'gated-gelu' was always the tanh approximation.
  named = {'act': 'gelu_new' if projection == 'gated-gelu' else projection.removeprefix('gated-')}
  dense = dict(layer='dense', d_ff=fields.need(hf, 'd_ff'), activation=fields.activation(named, 'act'),
               gated=gated)
  # transformers writes this beside feed_forward_proj; it is stronger where the two differ.
  fields.only(hf, is_gated_act=gated, dense_act_fn=named['act'])
  layers = fields.need(hf, 'num_layers', fields.LAYERS)
  below = fields.given(hf, 'num_decoder_layers', fields.LAYERS, layers)
  flag = lambda key, default: fields.given(hf, key, ranges.Flag, default)
  scaled = flag('scale_decoder_outputs', flag('tie_word_embeddings', True))
  model = encdec.model(hf, 'd' * layers, 'd' * below, tied, scaled or not tied)
  return dict(model=model, blocks=dict(d=dense), losses={})


def describe(c):
  """Returns the config.json of our configuration `c`."""
  common = encdec.describe(c, ARCHITECTURE, 't5')
  if set(c['blocks']) != {'d'} or c['blocks']['d']['layer'] != 'dense':
    raise errors.UserError('T5 has one kind of layer, blocks.d of dense layers; nearest: --to '
                           'switch_transformers')
  d, m = c['blocks']['d'], c['model']
  activation, gated = d.get('activation', 'relu'), d.get('gated', False)
  name = {'gelu': 'gelu' if gated else 'gelu_new'}.get(activation, activation)
  return common | dict(
      d_ff=d['d_ff'], feed_forward_proj=f'gated-{name}' if gated else name,
      is_gated_act=gated, dense_act_fn='gelu_new' if activation == 'gelu' else activation,
      scale_decoder_outputs=m.get('tie_embeddings', False) and m.get('scale_head', True))
