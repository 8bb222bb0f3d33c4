"""The blocks of attention-free models, and the wiring of a sparse layer.

Ours, because the paper's wiring is not known for sure: a sparse layer is two blocks, both pre-norm and
residual. The first is a gMLP block whose spatial matrix is the sMoE (letter s). The second is a tMoE (letter
t). tMoE is a BASE layer: its norms are inside its experts.
"""


def gmlp(length, d_ff, **inner):
  """Returns the dense gMLP block; fields of `inner` go to its spatial map."""
  return dict(layer='gmlp', attention=False, length=length, d_ff=d_ff, inner=dict(name='spatial', **inner))


def smoe(length, d_ff, router, executor='gather'):
  """Returns the gMLP block whose feature chunks are sent to spatial experts by `router`.

  `gather` fits buffers that are full by construction; `blocks` fits a router that sends chunks anywhere.
  """
  inner = dict(name='moe', executor=executor, group_size=None, router=router, experts=dict(name='feature'))
  return dict(layer='gmlp', attention=False, length=length, d_ff=d_ff, inner=inner)


def tmoe(d_ff, num_experts, group_size):
  """Returns the BASE layer: balanced in training, greedy in evaluation; tokens of all groups mixed."""
  router = dict(name='base', num_experts=num_experts, allow_causal=True)
  inner = dict(name='moe', executor='gather', group_size=group_size, router=router,
               experts=dict(name='residual', d_ff=d_ff))
  return dict(layer='shuffled', attention=False, norm=False, inner=inner)
