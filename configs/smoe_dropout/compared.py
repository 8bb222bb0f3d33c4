"""SMoE-Dropout as `configs/lm` compares it (arXiv:2303.01610)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns the dense layer cut into 2 E experts (16 at E = 8, as in the paper), E to all of them active.

  Its FLOPs are counted with all experts, which is what evaluation computes; training computes a quarter
  less. The schedule is as long as the training (see `common.schedule`).
  """
  common.whole('experts', num_experts, 1, d_ff // 2)
  router = dict(name='smoe_dropout', num_experts=2 * num_experts, k_min=num_experts, eval_k=None,
                total_steps=1)
  return common.moe(router, d_ff // (2 * num_experts), group_size)


METHODS = dict(smoe_dropout=common.compared(block))
