"""ST-MoE as `configs/lm` compares it (arXiv:2202.08906)."""

from stmoe.configs import common


LOSSES = common.BALANCE | dict(z=(1e-3, 'mean'))               # section 3: c_z = 0.001


def block(d_ff, num_experts, group_size):
  """Returns ST-MoE: two experts of width F/2, without its extra dense layer (it costs FLOPs).

  Capacity is 1.25 slots a choice, like Switch's. The paper's 1.25 slots for both choices together
  would drop over a third of the choices, and with these the FLOPs that are to be equal.
  """
  router = dict(name='st_moe', num_experts=num_experts, capacity_factor=(2.5, 4.0))
  return common.moe(router, d_ff // 2, group_size)


METHODS = dict(st_moe=common.compared(block, LOSSES))
