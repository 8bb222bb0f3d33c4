r"""Mowst on a graph of 1,000 handwritten digits: noise with good neighbours, pixels with random neighbours.

The file trains no experiment of the paper (arXiv:2311.05185), whose graphs are larger. Half of the nodes are
noise with edges from six digits like the hidden one. The other half are digits with edges from six random
nodes. A weak expert (MLP) can know the second half, a strong one (GCN) the first. 500 nodes train, 200 are
for validation, 300 for the test. A step is an epoch: the whole graph.

  stmoe train mowst/digits --workdir runs/mowst             two minutes
  stmoe train mowst/digits:method=star                      all experts together; any of: mowst | star |
                                                            star_separate | mlp | gcn | sage | gin
  stmoe train mowst/digits:method=mowst,strong=sage         any of: gcn | sage | gin | mlp
  stmoe train mowst/digits:smoke
  stmoe compare mowst/digits:method=mowst mowst/digits:method=gcn --seeds 0,1,2      a split for every seed
  stmoe eval runs/mowst --config.data.held=test
  stmoe train mowst/digits --config.data.task=files --config.data.files=FILE.npz     a graph of one's own:
    --config.data.num_nodes=N --config.data.num_edges=M --config.data.num_features=F
    --config.model.num_features=F --config.model.num_outputs=C
  stmoe train mowst/digits:data=citations                   a drawn graph of Cora's size: 2,708 nodes

Expected: the mixture is better than both experts. Test accuracy of the splits of seeds 0, 1 and 2 after 400
steps, by `--config.data.held=test`: mowst .78 .80 .77, star .78 .80 .79, gcn .53 .56 .53, mlp .51 .47 .50. In
a trial of other code only star was better than its GCN on all three of its splits.
Differs: turns have a fixed number of steps. The paper ends a turn after 100 epochs without a better
validation accuracy and goes back to the best. checkpoint.best keeps the best step of the whole run. One
learning rate and one dropout serve both before the mixture and in it.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mowst import paper
from stmoe.configs.mowst import recipe

VARIANTS = ('method=star', 'method=star_separate', 'method=mlp', 'method=gcn', 'method=sage', 'method=gin',
            'strong=sage', 'strong=gin', 'gate=features', 'gate=hyper', 'first=none', 'first=weak',
            'first=both', 'data=citations')
NETWORKS = ('mlp', 'gcn', 'sage', 'gin')
# method -> how losses and answers are mixed; networks alone have neither.
METHODS = dict(mowst=dict(mixing='separate', answer='drawn'), star=dict(mixing='joint', answer='mixed'),
               star_separate=dict(mixing='separate', answer='mixed'), **dict.fromkeys(NETWORKS))
# Nodes, edges, whether these go both ways, features, classes. A drawn graph may have fewer edges.
DATA = dict(digits=(1000, 6000, False, 64, 10), citations=(2708, 10832, True, 1433, 7))
TURN = 50                          # steps


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mowst', strong='gcn', gate='dispersion', first='strong',
                         data='digits')
  mixed = common.choose('method', args.method, METHODS)
  num_nodes, num_edges, undirected, num_features, num_classes = common.choose('data', args.data, DATA)
  c = common.config()
  c.model = dict(num_features=num_features, num_outputs=num_classes, d_model=64, num_layers=2,
                 dropout_rate=0.5, batch_norm=True)
  if mixed:
    c.model.update(name='mowst', weak='mlp', strong=args.strong, gate=args.gate, draws=paper.DRAWS)
    c.loss = dict(mixed, name='mowst', **recipe.first_steps(TURN, args.first))
  else:
    c.model.update(name='graph', network=args.method)
  c.blocks = dict()
  if args.method == 'mowst':
    c.groups = recipe.turns(TURN, args.first)
  c.data = recipe.data(c, args.data, num_nodes, num_edges, num_features, undirected)
  c.optimizer = dict(paper.ADAMW, weight_decay=paper.WEIGHT_DECAY['penn94'])
  c.schedule = dict(name='constant', value=0.01)
  recipe.train(c, steps=400, every=10)
  if args.smoke:
    c.model.d_model = 16
    c.data.update(num_nodes=200, num_edges=2 * num_edges // 10)
    recipe.train(c, steps=20, every=5)
  return c.lock()
