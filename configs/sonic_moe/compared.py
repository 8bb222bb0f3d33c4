"""Token rounding as `configs/lm` compares it (SonicMoE, arXiv:2512.14080): two experts of width F/2."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2, whose rows come in tiles of 16: groups are small here."""
  router = dict(name='sonic_moe', num_experts=num_experts, k=2, tile=16, allow_causal=True)
  return common.moe(router, d_ff // 2, group_size)


METHODS = dict(sonic_moe=common.compared(block, common.BALANCE))
