"""Routers and layers that know of depth, or are parts of one network, against plain top-2 of equal cost."""

from stmoe.experiments import sizes

# Parameters of experts are four times the dense layer's everywhere, FLOPs once.
PLAIN = {'blocks.m.router.capacity_factor': '(None, None)', 'blocks.m.router.second_policy': 'all'}
MODELS = {
    'top_2': ('method=st_moe', PLAIN),                               # 8 experts of F/2
    'rmoe': 'method=rmoe',
    'rmoe_not_passing': ('method=rmoe', {'blocks.m.router.passing': 'off'}),
    'rmoe_stopped': ('method=rmoe', {'blocks.m.router.passing': 'stopped'}),
    'omni': 'method=omni_router,experts=4',                          # top-1 of 4 experts of F
    'omni_apart': ('method=omni_router,experts=4', {'blocks.m.router.share': 'nothing'}),
    'chain': 'method=chain_of_experts,experts=4',                    # two turns, 15 + 1 experts of F/4
    'chain_one_gate': ('method=chain_of_experts,experts=4', {'blocks.m.each_gate': False}),
    'union': 'method=union_of_experts',
    'union_trained': 'method=union_of_experts_trained',
}


def runs(size='small'):
  """Yields a run of every model and seed."""
  return sizes.runs(size, MODELS)
