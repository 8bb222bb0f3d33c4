"""Llama (arXiv:2302.13971, arXiv:2407.21783), a dense model that sparse ones are made of."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'LlamaForCausalLM'
COPIES = decoder.COPIES
RULES = [*decoder.ATTENTION, *decoder.REST, *decoder.glu('', 'mlp.')]
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def configure(hf, tied, **more):
  """Returns the sections model, blocks and losses of a config.json; `more` are fields of the model."""
  flag = lambda key: fields.given(hf, key, ranges.Flag, False)
  attention = dict(name='attention', use_bias=flag('attention_bias'))
  block = decoder.dense(fields.need(hf, 'intermediate_size'), fields.activation(hf, 'hidden_act', 'silu'))
  layers = 'd' * fields.need(hf, 'num_hidden_layers', fields.LAYERS)
  return dict(model=decoder.model(hf, layers, tied, attention=attention, **more),
              blocks=dict(d=block | dict(use_bias=flag('mlp_bias'))), losses={})


def describe(c):
  """Returns the config.json of our configuration `c`."""
  return dense(c, ARCHITECTURE, 'llama')


def dense(c, architecture, model_type):
  """Returns the config.json of our configuration `c` of a dense decoder; raises UserError for other ones."""
  blocks = {letter: c['blocks'][letter] for letter in rules.letters(c['model']['layers'])}
  other = next((block['layer'] for block in blocks.values() if block['layer'] != 'dense'), None)
  if other or len(blocks) > 1:
    raise errors.UserError(f'{architecture} has one kind of block, blocks.d of dense layers, not '
                           f'{other or ", ".join(blocks)}; nearest: --to mixtral')
  block, = blocks.values()
  return decoder.describe(c, architecture, model_type) | dict(
      intermediate_size=block['d_ff'], hidden_act=fields.spelled(block, 'relu'),
      attention_bias=decoder.attention(c).get('use_bias', False),
      mlp_bias=block.get('use_bias', False))
