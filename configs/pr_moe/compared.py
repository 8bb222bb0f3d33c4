"""PR-MoE as `configs/lm` compares it (arXiv:2201.05596)."""

from stmoe.configs import common


def layer(d_ff, num_experts, group_size):
  """Returns a dense network and one expert of width F/2 each; capacity is 1.25 slots, like Switch's."""
  router = dict(name='pr_moe', num_experts=num_experts, capacity_factor=(1.25, 2.0), allow_causal=True)
  inner = common.moe(router, d_ff // 2, group_size)
  inner['name'] = inner.pop('layer')
  return dict(layer='pr_moe', d_ff=d_ff // 2, activation='relu', inner=inner)


def blocks(d_ff, num_experts, group_size):
  """Returns the pyramid's layers: p with `num_experts`, m with half of them."""
  return dict(m=layer(d_ff, max(num_experts // 2, 1), group_size), p=layer(d_ff, num_experts, group_size))


def pattern(pairs):
  """Returns the layers: the last sparse one has twice the experts of those before it."""
  return ((('dm', pairs - 1),) if pairs > 1 else ()) + (('dp', 1),)


METHODS = dict(pr_moe=common.compared(blocks, dict(balance=(1e-2, 'sum')), pattern=pattern))
