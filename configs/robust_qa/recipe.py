"""The training run of a question answerer of the size of DistilBERT, from `paper`."""

from stmoe.configs import common
from stmoe.configs.robust_qa import paper

EXPERTS = 8                        # the paper's number was not found
# Where Switch layers (s) stand among the dense layers (d), of six.
PLACES = {'all': (('s', 6),), 'middle': (('d', 2), ('s', 2), ('d', 2)), 'every_second': (('ds', 3),),
          'none': (('d', 6),)}


def mixture(d_ff, experts, k, gate, group_size=None):
  """Returns the head with `experts` experts of width `d_ff`; 0 = the dense head."""
  if not experts:
    return dict(name='span_head')
  common.whole('experts', experts, common.whole('k', k))
  return dict(name='span_mixture', gate=gate, group_size=group_size, executor='blocks',
              router=dict(name='vmoe', num_experts=experts, k=k, capacity_factor=(None, None), noise_std=1.0),
              experts=dict(name='mlp', d_ff=d_ff, activation='gelu', use_bias=True, init_scale=1.0))


def switch(d_ff, experts, group_size):
  """Returns the Switch layer in the place of a dense layer of width `d_ff`."""
  return dict(layer='moe', executor='gather', group_size=group_size,
              router=dict(name='switch', num_experts=experts, jitter=1e-2,
                          capacity_factor=2 * (paper.FFN['capacity_factor'],)),
              experts=dict(name='mlp', d_ff=d_ff, activation='gelu', use_bias=True, init_scale=1.0))


def losses(c):
  """Sets the coefficients of the losses that the model of `c` has."""
  if any('router' in block for block in c.blocks.values()):
    c.losses.balance = (paper.FFN['balance'], 'mean')
  if 'router' in c.model.head:
    c.losses.update(importance=(paper.HEAD['importance'], 'mean'), load=(paper.HEAD['load'], 'mean'),
                    gshard=(0.0, 'mean'))


def training(head=0, place='none', experts=EXPERTS, k=paper.HEAD['k'], gate=paper.HEAD['gate']):
  """Returns the unlocked config: 3 epochs of 3 x 50,000 questions, of one window each.

  Args:
    head:  experts of the head, 0 = dense.
    place: of PLACES; experts: of each Switch layer.
  """
  size, window, optim = paper.SIZE, paper.WINDOW, paper.OPTIM
  c = common.config()
  c.model = dict(name='encoder', vocab_size=30_592, d_model=size['d_model'],
                 encoder=common.choose('place', place, PLACES), num_heads=size['num_heads'],
                 head_dim=size['d_model'] // size['num_heads'], length=size['positions'],
                 head=mixture(paper.HEAD['d_ff'], head, k, gate), epsilon=size['epsilon'],
                 dropout_rate=size['dropout'], dtype='bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = dict(d=dict(layer='dense', d_ff=size['d_ff'], activation='gelu', use_bias=True))
  if place != 'none':
    c.blocks.s = switch(size['d_ff'], experts, 2 * window['length'])
  losses(c)
  c.data = common.spans('squad', window['length'], 'train:30000', stride=window['stride'],
                        answer_length=window['answer_length'])
  c.finetune = dict(model='start', load='all', optimizer='fresh', dropout_rate=None, expert_dropout_rate=None,
                    capacity_factor=None, aux=True)
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.999, weight_decay=0.01)
  c.schedule = dict(name='constant', value=optim['peak'])
  examples = len(paper.IN_DOMAIN['sets']) * paper.IN_DOMAIN['examples']
  c.train.update(steps=optim['epochs'] * examples // optim['batch_size'], batch_size=optim['batch_size'],
                 log_every=50, stats_every=1000, trainable='all')
  c.eval.update(every=2000, batch_size=64, methods=('span',), examples=0)
  c.checkpoint.update(every=2000, best='')
  return c
