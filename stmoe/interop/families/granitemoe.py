"""Granite 3 MoE (1B-A400M, 3B-A800M): multipliers of embedding, residual stream, attention and logits."""

from stmoe.interop import decoder
from stmoe.interop import granite

ARCHITECTURE = 'GraniteMoeForCausalLM'
COPIES = decoder.COPIES
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return granite.table()


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  model, sparse, losses = granite.configure(hf, tied)
  return dict(model=model, blocks=dict(m=dict(layer='moe', **sparse)), losses=losses)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  return granite.describe(c, ARCHITECTURE, 'granitemoe')
