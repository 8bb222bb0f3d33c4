r"""A language model that holds networks of four widths; a mixture of weights makes the one that is asked for.

Mixture-of-Supernets (arXiv:2306.04845). Expected: with two sets of weights a smaller loss of every width than
with one (experts=1, the ordinary supernet). It is nearer to that of the same network trained alone. Mixtures
of every unit (neuron) and a router of two layers are best (u).
Differs: a language model, where the paper has BERT and translation; only feed-forward widths are sampled, one
in each layer and step; sizes, data, optimizer and rate are this project's.

  stmoe train mixture_of_supernets/supernet --workdir runs/supernet
  stmoe eval runs/supernet --sweep blocks.m.width=512,1024,2048         every width of the trained one
  stmoe train mixture_of_supernets/supernet:experts=1                   all widths share all weights
  stmoe train mixture_of_supernets/supernet:smoke                       laptop, about a minute
  neuron: a mixture for every unit; layers = 1 | 2, of the router; experts = 2; coding = one_hot | share
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mixture_of_supernets import paper

D_FF = 2048
WIDTHS = (512, 1024, 1536, 2048)
VARIANTS = ('experts=1', 'neuron', 'layers=1', 'neuron,layers=1', 'coding=share')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=paper.EXPERTS, neuron=False, layers=paper.ROUTER_LAYERS,
                         coding='one_hot')
  hidden = common.choose('layers', args.layers, {1: 0, 2: 64})
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=512, num_heads=8, head_dim=64, tie_embeddings=True,
                 layers=(('m', 8),), dtype='bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=dict(layer='mixed_weights', d_ff=D_FF, num_experts=args.experts, widths=WIDTHS,
                         neuron=args.neuron, hidden=hidden, coding=args.coding, activation='gelu'))
  c.data = common.data('c4', 512, vocab='train:32000')
  common.train(c, steps=50_000, batch_size=128, peak=1e-3, warmup_steps=1000, eval_rows=128,
               optimizer=common.adamw(0.98, 0.01))
  if args.smoke:
    c.blocks.m.widths = (32, 64, 96, 128)
    c.schedule.warmup_steps = 5
    return common.smoke(c)
  return c.lock()
