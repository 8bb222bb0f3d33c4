"""Granite MoE with a shared network beside the experts; the rest is that of `granitemoe`."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import granite
from stmoe.interop import rules

ARCHITECTURE = 'GraniteMoeSharedForCausalLM'
COPIES = decoder.COPIES
SHARED = 'decoder/layers/{i}/layer/shared/', decoder.LAYER + 'shared_mlp.'
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  ours, theirs = SHARED
  return [
      (ours + 'wi', theirs + 'input_linear.weight[0/2]', rules.LINEAR),
      (ours + 'wg', theirs + 'input_linear.weight[1/2]', rules.LINEAR),
      (ours + 'wo', theirs + 'output_linear.weight', rules.LINEAR),
      *granite.table('inner/'), *granite.table(),
  ]


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  model, sparse, losses = granite.configure(hf, tied)
  width = fields.given(hf, 'shared_intermediate_size', ranges.Natural, 0)
  block = dict(layer='shared', d_ff=width, num_shared=1, activation=sparse['experts']['activation'],
               inner=dict(name='moe', **sparse)) if width else dict(layer='moe', **sparse)
  return dict(model=model, blocks=dict(m=block), losses=losses)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  block = decoder.last(c)[1]
  width = block['d_ff'] * block.get('num_shared', 1) if block['layer'] == 'shared' else 0
  return granite.describe(c, ARCHITECTURE, 'granitemoeshared') | dict(shared_intermediate_size=width)
