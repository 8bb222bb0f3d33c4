"""A weak expert (MLP) and a strong one (GCN) on a graph, alone and in Mowst; every seed has its own split."""

from stmoe.experiments import sizes

NETWORKS = {'mlp': 'method=mlp', 'gcn': 'method=gcn', 'mowst': 'method=mowst', 'mowst_star': 'method=star',
            'two_gcn': 'method=star'}
FIELDS = {'two_gcn': {'model.weak': 'gcn'}}
DATA = {'smoke': '', 'small': '', 'large': ',data=citations'}


def runs(size='small'):
  """Yields a run of every model and seed, judged once: on the test nodes, after the last step."""
  sizes.seeds(size)
  models = {name: (f'mowst/digits:{argument}{DATA[size]}', {'data.held': 'test'} | FIELDS.get(name, {}))
            for name, argument in NETWORKS.items()}
  return sizes.fitted(size, models, {}, {'train.steps': 2000})
