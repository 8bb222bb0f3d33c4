"""The commands of Mowst's README (arXiv:2311.05185), on a graph of one's own or on a drawn one.

The six graphs are not here. With data.task=files the user's file is read, an .npz of nodes, edges, labels and
split (`data/sources/graphs.py`). Without a file the graph is drawn, of Cora's size.

  stmoe train mowst/commands --workdir runs/flickr
  stmoe train mowst/commands --config.data.task=files --config.data.files=FILE.npz
    --config.data.num_nodes=N --config.data.num_edges=M --config.data.num_features=F
    --config.model.num_features=F --config.model.num_outputs=C
  stmoe train mowst/commands:row=arxiv_sage       any of: flickr | products | arxiv | penn94 | pokec |
                                                  twitch_gamer | arxiv_sage | products_sage
  stmoe train mowst/commands:smoke

Expected (from memory, unverified): the mixture is better than its GNN alone.
Differs: the learning rate changes once, with the first step of the mixture. The dropout is that of the
mixture from the start. Turns are of 100 epochs; in the paper these are the epochs without a gain that end a
turn.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mowst import paper
from stmoe.configs.mowst import recipe

VARIANTS = ('row=products', 'row=arxiv', 'row=penn94', 'row=pokec', 'row=twitch_gamer', 'row=arxiv_sage',
            'row=products_sage')
STEPS = 2 * paper.BIG_EPOCHS * paper.PATIENCE


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, row='flickr')
  row = common.choose('row', args.row, paper.COMMANDS)
  steps, every, num_nodes, num_features = STEPS, paper.PATIENCE, 2708, 1433
  if args.smoke:
    steps, every, num_nodes, num_features = 20, 5, 200, 50
  c = common.config()
  c.model = dict(name='mowst', num_features=num_features, num_outputs=7, d_model=row['d_model'], weak='mlp',
                 strong=row['strong'], num_layers=row['num_layers'], dropout_rate=row['dropouts'][1],
                 gate=row['gate'], draws=paper.DRAWS)
  in_turn = row['method'] == 'mowst'
  c.loss = dict(name='mowst', mixing='separate' if in_turn else 'joint',
                answer='drawn' if in_turn else 'mixed', **recipe.first_steps(every, row['first']))
  c.blocks = dict()
  if in_turn:
    c.groups = recipe.turns(every, row['first'])
  c.data = recipe.data(c, 'citations', num_nodes, 4 * num_nodes, num_features, undirected=True)
  c.optimizer = dict(paper.ADAMW, weight_decay=paper.WEIGHT_DECAY[args.row])
  first, then = row['rates']
  c.schedule = dict(name='staircase', peak=first, factor=then / first, at=(c.loss.first_steps / steps,))
  recipe.train(c, steps, every=max(every // 10, 5))
  if args.smoke:
    c.model.d_model = 16
  return c.lock()
