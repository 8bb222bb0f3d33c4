r"""HoME, PLE, CGC, MMoE and a shared bottom on tasks that are drawn, or on MovieLens.

HoME (arXiv:2408.05430) beside MMoE (KDD 2018) and PLE (RecSys 2020). Drawn tasks are those of MMoE: two
answers of 100 numbers, correlated as `p` says. Every `problem` is another pair of functions.

  stmoe train home/many_tasks --workdir runs/home
  stmoe train home/many_tasks:method=mmoe   any of: shared_bottom | omoe | mmoe | ml_mmoe | cgc | ple | home
  stmoe train home/many_tasks:p=0.0,problem=7                      other tasks; 20 problems and more
  stmoe train home/many_tasks:yes                                  yes or no answers, with AUC
  stmoe train home/many_tasks:data=movielens --config.data.files=DIR/u.data      liked and loved films
    DIR/ratings.dat and DIR/NAME.inter are read as well. Other sets than MovieLens-100K need
    --config.data.num_ids and --config.model.num_ids
  stmoe train home/many_tasks:smoke                                half a minute

Expected: the papers print no result on these data, but orders. On drawn tasks the loss is the squared error
over the labels' variance. With p = 0 it is lowest for MMoE, highest for the shared bottom; the effect is
smaller than the spread over problems. Of problem 0, p = 0: mmoe 0.034, home 0.040 (0.22 with ReLU and no
norms), shared_bottom 0.059. On MovieLens (like), items' mean ratings alone have an AUC of 0.723 and a GAUC of
0.697; the mean over both tasks was 0.795 and 0.715 for home, 0.795 and 0.720 for mmoe. All one seed.
Differs: widths are MMoE's (8 experts of 16 units, towers of 8), HoME's own were not found. Answers are scaled
to variance 1. A task of drawn problems is a group of its own for HoME.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.home import paper

VARIANTS = ('method=shared_bottom', 'method=omoe', 'method=mmoe', 'method=ml_mmoe', 'method=cgc',
            'method=ple', 'yes', 'p=0.0', 'problem=1', 'data=movielens')

# method -> mixer; each has 8 experts, but PLE, HoME and ML-MMoE in each of two levels.
EXPERTS = paper.SYNTHETIC['num_experts']
METHODS = dict(
    shared_bottom=dict(name='mmoe', num_experts=1),
    omoe=dict(name='mmoe', num_experts=EXPERTS, gates='one'),
    mmoe=dict(name='mmoe', num_experts=EXPERTS),
    ml_mmoe=dict(name='ple', specific=3, shared=2, num_levels=paper.PLE['num_levels'], separate=False),
    cgc=dict(name='ple', specific=3, shared=2, num_levels=1),
    ple=dict(name='ple', specific=3, shared=2, num_levels=paper.PLE['num_levels']),
    home=dict(name='home', groups=((0,), (1,)), meta=3, shared=2, specific=2, category=1, common=2),
)
# MovieLens-100K: columns of names, and how many values they have, each with one for unknown values.
COLUMNS = dict(user=943, item=1682, gender=2, occupation=21)
NUM_IDS = sum(COLUMNS.values()) + len(COLUMNS)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='home', data='drawn', p=0.5, problem=0, yes=False)
  mixer = common.choose('method', args.method, METHODS)
  data = common.choose('data', args.data, dict(drawn=drawn, movielens=movielens))
  c = common.config()
  units = paper.SYNTHETIC['shared_bottom' if args.method == 'shared_bottom' else 'units']
  c.model = dict(name='multi_task', num_outputs=2, d_model=units, tower=paper.SYNTHETIC['tower'], mixer=mixer)
  c.blocks, c.losses = {}, {}
  data(c, args)
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.999, weight_decay=0.0)
  c.schedule = dict(name='constant', value=1e-3)
  c.train.update(steps=2000, batch_size=256, log_every=100, stats_every=500)
  c.eval.update(every=500, batch_size=1000)
  c.checkpoint.update(every=500)
  if args.smoke:
    c.train.update(steps=20, batch_size=32, log_every=10, stats_every=10)
    c.eval.update(every=10, batch_size=40)
    c.checkpoint.update(every=10)
    if args.data == 'drawn':
      c.data.update(num_rows=400, num_held_out=80)
  return c.lock()


def drawn(c, args):
  """Gives `c` the data of MMoE's generator."""
  c.model.num_features = paper.SYNTHETIC['num_features']
  c.data = dict(source='drawn_tasks', problem=args.problem, correlation=args.p, shuffle=True,
                num_features=paper.SYNTHETIC['num_features'], positives=(0.5, 0.5) if args.yes else (),
                num_rows=20_000, num_held_out=5_000, eval_split='validation')
  c.loss = dict(name='binary' if args.yes else 'values')


def movielens(c, args):
  """Gives `c` the ratings of MovieLens: is a film liked (a rating of at least 4), is it loved (5)?"""
  del args
  c.model.update(num_features=20, num_ids=NUM_IDS, num_columns=len(COLUMNS), embed_dim=16)
  c.data = dict(source='table', files=('ml-100k/u.data',), numbers=('age', 'genres[19]'),
                categories=tuple(COLUMNS), num_ids=NUM_IDS, labels=('like', 'love'), group='user',
                split='split', shuffle=True, eval_split='validation')
  c.loss = dict(name='binary')
