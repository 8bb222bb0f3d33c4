r"""The models of lm/stdlib on text of yours: files, folders, patterns; plain text, JSON lines, Parquet.

  stmoe train lm/text:method=switch --config.data.files=FILE,FILE --workdir runs/text
  stmoe train lm/text:smoke --config.data.files=FILE              laptop, about a minute
  stmoe train lm/text --config.data.files='rows/*.jsonl.zst' --config.data.field=body

The run reports bits per byte of the held-out part, byte vocabulary. `--config.data.vocab=train:4096
--config.model.vocab_size=4096` trains a SentencePiece vocabulary on the text first. The arguments
and the remark on expert choice are those of lm/stdlib.
"""

from stmoe.configs.lm import stdlib

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('method=expert_choice',)


def get_config(arg=''):
  c = stdlib.get_config(arg).unlock()
  c.data.task = 'text'
  return c.lock()
