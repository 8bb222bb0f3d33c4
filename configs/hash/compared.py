"""Hash layers as `configs/lm` compares them (arXiv:2106.04426): a random table, or two of them."""

from stmoe.configs import common


def hashed(d_ff, num_experts, group_size):
  """Returns the Hash layer: each token to the expert of its id, experts of width F; nothing is dropped."""
  return common.moe(_router(num_experts), d_ff, group_size)


def multihash(d_ff, num_experts, group_size):
  """Returns MultiHash with two hash functions, each for half of both matrices."""
  return dict(layer='multihash', executor='blocks', group_size=group_size, num_hashes=2,
              router=_router(num_experts), experts=dict(name='linear', d_ff=d_ff, init_scale=1.0))


def _router(num_experts):
  """Returns the router with a random table; a balanced one would need the text's counts (`stmoe tables`)."""
  return dict(name='hash', num_experts=num_experts, kind='random', table='', vocab_size=0)


METHODS = dict(hash=common.compared(hashed), multihash=common.compared(multihash))
