"""Mistral (arXiv:2310.06825), a dense model of Llama's form whose queries may see a window of keys."""

from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop.families import llama

ARCHITECTURE = 'MistralForCausalLM'
COPIES, WINDOW = llama.COPIES, 4096    # the window where config.json has no such field
table, ignored, copied = llama.table, llama.ignored, llama.copied


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json; a window that is null is none."""
  fields.only(hf, attention_bias=False, mlp_bias=False)
  window = fields.given(hf, 'sliding_window', ranges.Count, None if 'sliding_window' in hf else WINDOW)
  return llama.configure(hf, tied, window=window)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  return llama.dense(c, ARCHITECTURE, 'mistral') | dict(sliding_window=c['model'].get('window'))
