"""The blocks of MoFME, of its baselines and of the form that was released, by name."""

from stmoe.configs import common
from stmoe.configs.mofme import paper

METHODS = ('mofme', 'naive', 'dense')


def router(experts, k, passes):
  """Returns the section of the router; passes=0 has the softmax in training, too."""
  return dict(name='mofme', num_experts=experts, k=k, passes=passes, dropout_rate=0.1 if passes else 0.0)


def block(method, d_ff, experts, k, passes, released=False, executor='blocks'):
  """Returns the block of a method: E experts of width F, or modulated features and an adaptor of width F.

  Args:
    released: of mofme, as the code runs: expert 0 is the activation, and the last expert is dead.
  """
  if common.choose('method', method, dict.fromkeys(METHODS, method)) == 'dense':
    return dict(layer='dense', d_ff=d_ff, activation='gelu_exact', use_bias=True)
  common.whole('experts', experts, max(common.whole('k', k, 0), 1 + (released and method == 'mofme')))
  choice = router(experts, k, passes)
  if method == 'naive':                  # every expert has a norm of its own
    return dict(layer='moe', norm=False, executor=executor, router=choice,
                experts=dict(name='residual', d_ff=d_ff, activation='gelu_exact'))
  live = dict(choice, num_experts=experts - released)
  return dict(layer='mofme', d_ff=d_ff, executor=executor, router=live, experts=dict(name='film'),
              virtual=('activated',) * released, dropout_rate=paper.DROPOUT)
