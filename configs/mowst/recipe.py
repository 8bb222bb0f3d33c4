"""What experiments of Mowst have in common: the groups that take turns, and the data of a graph."""


def turns(every, first):
  """Returns the section `groups` of two groups that train for `every` steps in turn.

  The weak expert trains with the gate. Who is trained before the mixture has the first turn; of both, and
  where nobody is, the strong and the weak.
  """
  strong_first = first in ('strong', 'both')
  return dict(weak=dict(where='weak,gate', every=every, turn=(int(strong_first), 2)),
              strong=dict(every=every, turn=(int(not strong_first), 2)))


def first_steps(steps, first):
  """Returns the fields of section `loss` of who is trained before the mixture, for `steps` steps each."""
  return dict(first=first, first_steps=steps * dict(none=0, both=2).get(first, 1))


def data(c, task, num_nodes, num_edges, num_features, undirected):
  """Returns the section `data` of a drawn graph, whose split is that of the seed of configuration `c`."""
  return dict(source='graphs', task=task, files=(), num_nodes=num_nodes, num_edges=num_edges,
              num_features=num_features, nodes=True, classes=True, undirected=undirected, noisy=0.5,
              split_seed=c.get_oneway_ref('seed'), held='validation', shuffle=False, eval_split='validation',
              cache_dir='')


def train(c, steps, every):
  """Gives `c` the sections of a training of `steps` epochs on one graph, evaluated every `every` epochs."""
  c.train.update(steps=steps, batch_size=1, log_every=every, stats_every=max(every, steps // 4))
  c.eval.update(every=every, batch_size=1)
  c.checkpoint.update(every=max(every, steps // 4))
  c.mesh.update(data=1, model=-1)       # one graph is one row: devices share the width
