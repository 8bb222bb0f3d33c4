"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's routing beside attention with norms of each head; windows."""

from stmoe import ranges
from stmoe.interop import decoder
from stmoe.interop import deepseek
from stmoe.interop import fields

ARCHITECTURE = 'Dots1ForCausalLM'
COPIES = decoder.COPIES
WINDOW, FIRST = 4096, 62               # the window and the first layer with it, where config.json is silent
SCORES = 'sigmoid', 'noaux_tc'         # scoring_func; the second is the released name of V3's choice
ignored = decoder.ignored
copied = decoder.copied


def table(c):
  """Returns the rules of configuration `c`."""
  return [*decoder.ATTENTION, *decoder.REST, *deepseek.LAYERS]


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  if hf.get('scoring_func') not in SCORES:
    fields.only(hf, scoring_func=SCORES[0])
  letters, blocks, losses = deepseek.layers(hf, deepseek.v3_router(hf, normalized=False))
  hf = dict(sliding_window=WINDOW) | hf
  first = fields.given(hf, 'max_window_layers', ranges.Natural, FIRST)
  usual = [decoder.KINDS[hf['sliding_window'] is not None and i >= first] for i in range(len(letters))]
  letters, blocks = decoder.windowed(letters, blocks, decoder.windows(hf, len(letters), usual))
  attention = decoder.head_norms(hf) | dict(use_bias=fields.given(hf, 'attention_bias', ranges.Flag, False))
  return dict(model=decoder.model(hf, letters, tied, attention=attention), blocks=blocks, losses=losses)


def describe(c):
  """Returns the config.json of our configuration `c`."""
  return (decoder.describe(c, ARCHITECTURE, 'dots1') | decoder.describe_windows(c)
          | deepseek.describe_layers(c, deepseek.V3)
          | dict(attention_bias=decoder.attention(c).get('use_bias', False)))
