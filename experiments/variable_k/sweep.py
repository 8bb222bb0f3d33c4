"""Fixed and varying numbers of experts a token: the same bank of eight, more or fewer of them computed."""

from stmoe.experiments import sizes

# Eight experts of half the dense width; Duo-LLM and Mixture of Depths have one network.
WIDTH = {'smoke': 256, 'small': 256, 'large': 512}
PLAIN = {'blocks.m.router.capacity_factor': '(None, None)', 'blocks.m.router.second_policy': 'all'}
TOP = (1, 2, 4)
# Real experts of a token that FLOPs are counted with; a trained router has others.
COUNTED = {'top_1': 1, 'top_2': 2, 'top_4': 4, 'adamoe': 2, 'moe_plus_plus': 1, 'top_p': 4, 'remoe': 2,
           'duo_llm': 0.5}
BIG = {'duo_llm': 4}                         # of WIDTH: what one real expert is, where not one of the eight
# Of the small model: sparse layers, matrices of an expert, D.
SPARSE, PRODUCTS, D_MODEL = 2, 2, 128


def runs(size='small'):
  """Yields a run of every method and seed."""
  sizes.seeds(size)
  narrow = {'blocks.m.experts.d_ff': WIDTH[size]}
  models = {'dense': 'method=dense'}
  for k in TOP:
    models[f'top_{k}'] = 'method=st_moe', {'blocks.m.router.k': k} | PLAIN | narrow
  models |= {'adamoe': 'method=adamoe', 'moe_plus_plus': ('method=moe_plus_plus', narrow),
             'top_p': ('method=top_p_routing', narrow), 'remoe': 'method=remoe', 'duo_llm': 'method=duo_llm',
             'mixture_of_depths': 'method=mixture_of_depths'}
  return sizes.runs(size, models)
