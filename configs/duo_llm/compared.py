"""Duo-LLM as `configs/lm` compares it (arXiv:2410.10846): half of the tokens have the big module, of 2 F."""

from stmoe.configs import common

TARGET, SMALLER = 0.5, 16


def block(d_ff, num_experts, group_size):
  """Returns a router trained from the start, with all else; the small module is what costs more."""
  router = dict(name='duo_llm', num_experts=1, target=TARGET, scope='microbatch', total_steps=1)
  big = round(d_ff / TARGET)
  small = dict(name='small', d_ff=max(1, big // SMALLER), activation='relu', gated=False)
  return common.moe(router, big, group_size) | dict(virtual=(small,))


METHODS = dict(duo_llm=common.compared(block, dict(budget=(1.0, 'sum'))))
