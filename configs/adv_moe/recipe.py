"""What AdvMoE and its baselines differ in: the network, the target, and which parameters train when."""

from stmoe.configs import common

METHODS = ('advmoe', 'bilevel', 'plain', 'dense', 'standard')


def put(c, method, experts, ratio, attack):
  """Sets router, target and groups of `c` to those of a method.

    advmoe    steps of experts and of the router in turns; the router learns y mod E, as released
    bilevel   the same, but the router learns the loss of the model, as the paper says
    plain     a mixture whose router learns the loss of the model in every step
    dense     a dense network of the experts' width, adversarially trained
    standard  the same without attacks in training

  Args:
    ratio:  width of an expert, of the network's.
    attack: fields of the target.
  """
  common.choose('method', method, dict.fromkeys(METHODS))
  c.model.ratio = ratio
  if method not in ('dense', 'standard'):
    c.model.router = dict(name='adv_moe', num_experts=experts)
  c.loss = dict(attack, name='adversarial', inner=dict(name='ids'))
  c.loss.router_target = 'class_mod' if method == 'advmoe' else 'trades_model'
  if method == 'standard':
    c.loss.beta = 0.0
  if method in ('advmoe', 'bilevel'):
    c.groups = dict(experts=dict(where='rest', turn=(0, 2)), router=dict(turn=(1, 2)))
