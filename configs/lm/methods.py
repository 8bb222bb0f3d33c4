"""The compared feed-forward layers: one block recipe a method, all of equal active FLOPs per token.

A method that sends a token to k experts gets experts of width F/k, where F is the width of the
dense layer; the router's own product (D x E per token) is the only difference.
Tokens are routed together in groups of `group_size` (None = one sequence): with few, capacity is
uneven and more tokens are dropped; the groups of a batch must divide over the devices.
"""

from stmoe import errors
from stmoe.configs import common

# Router losses: name -> (coefficient, reduction over layers); 0.0 leaves the term out.
NO_LOSSES = dict(balance=(0.0, 'mean'), z=(0.0, 'mean'))
BALANCE = dict(balance=(1e-2, 'mean'), z=(0.0, 'mean'))        # Switch section 2.2: alpha = 0.01
BALANCE_Z = dict(balance=(1e-2, 'mean'), z=(1e-3, 'mean'))     # ST-MoE section 3: c_z = 0.001


def dense(d_ff, num_experts=0, group_size=None):
  """Returns the dense layer every method is compared with, width F; called like the others."""
  return dict(layer='dense', d_ff=d_ff)


def switch(d_ff, num_experts, group_size=None):
  """Returns Switch: each token to its first expert, experts of width F."""
  router = dict(name='switch', num_experts=num_experts, capacity_factor=(1.25, 2.0))
  return moe(router, d_ff, group_size)


def gshard(d_ff, num_experts, group_size=None):
  """Returns GShard: two experts of width F/2; capacity 2 S / E, its factor counts both choices."""
  router = dict(name='gshard', num_experts=num_experts, capacity_factor=(2.0, 2.0))
  return moe(router, d_ff // 2, group_size)


def st_moe(d_ff, num_experts, group_size=None):
  """Returns ST-MoE: two experts of width F/2, without its extra dense layer (it costs FLOPs).

  Capacity is 1.25 slots a choice, like Switch's. The paper's 1.25 slots for both choices together
  would drop over a third of the choices, and with them the FLOPs that are to be equal.
  """
  router = dict(name='st_moe', num_experts=num_experts, capacity_factor=(2.5, 4.0))
  return moe(router, d_ff // 2, group_size)


def expert_choice(d_ff, num_experts, group_size=None):
  """Returns expert choice: every expert takes 2 S / E tokens; experts of width F/2."""
  router = dict(name='expert_choice', num_experts=num_experts, capacity_factor=(2.0, 2.0))
  return moe(router, d_ff // 2, group_size)


def moe(router, d_ff, group_size):
  """Returns the sparse layer of `router` with ReLU experts of width `d_ff`, initialised like dense.

  `blocks` is the fast executor of a CPU, where these models are made to run; on an accelerator
  take --config.blocks.m.executor=gather. The numbers are the same.
  """
  return dict(layer='moe', executor='blocks', group_size=group_size, router=router,
              experts=dict(name='mlp', d_ff=d_ff, init_scale=1.0))


# method -> (block, router losses, backbone). Expert choice looks at the whole group before it
# chooses, so in a causal stack it would see the tokens it has to predict: its home is an encoder.
METHODS = dict(
    dense=(dense, NO_LOSSES, 'lm'),
    switch=(switch, BALANCE, 'lm'),
    gshard=(gshard, BALANCE, 'lm'),
    st_moe=(st_moe, BALANCE_Z, 'lm'),
    expert_choice=(expert_choice, NO_LOSSES, 't5'),
)


def find(method):
  """Returns (block, router losses, backbone) of `method`; raises UserError naming the nearest."""
  return common.choose('method', method, METHODS)


def causal(method):
  """Returns (block, router losses) of a `method` that a causal language model may use."""
  block, losses, backbone = find(method)
  if backbone != 'lm':
    raise errors.UserError(f'method={method!r} is not causal, its loss would leak the text to be predicted; '
                           f'lm/stdlib:method={method} trains it in the encoder of a T5 model')
  return block, losses
