"""Every surgery on two trained models of eight experts: what is left of them at once, and after some tuning.

Names of runs are start_method_share, 'top2_slim_0.5'. The share is what stays of the parameters of experts,
or of their bits where the method makes codes.
"""

import math

from stmoe.experiments import sizes

# Steps of a start, and of all the tuning that follows.
STEPS = {'smoke': (4, 2), 'small': (1000, 100), 'large': (4000, 400)}
SHARES = (0.5, 0.25, 0.75)
EXPERTS = 8
WIDTH = {'smoke': 96, 'small': 96, 'large': 256}                     # of an expert
# Every feed-forward layer is sparse, and no token is dropped.
SPARSE = {'model.layers': "(('m', 3),)", 'blocks.m.router.capacity_factor': '(None, None)',
          'losses.z': "(0.0, 'mean')"}
TINY = {'model.d_model': 64, 'model.num_heads': 1, 'data.length': 128, 'train.batch_size': 8,
        'schedule.peak': 4e-3, 'schedule.warmup_steps': 50, 'train.log_every': 50, 'eval.batch_size': 64,
        'eval.batches': 16}
STARTS = {'top2': ('st_moe', {'blocks.m.router.second_policy': 'all'}), 'top1': ('switch', {})}
SCORED = {'eval.batches': 8}             # what is compared is scored on the same text
TUNING = {'schedule.peak': 2e-3, 'schedule.warmup_steps': 5} | SCORED

# A stage is (part of the tuning that follows it, method, flags). {keep} is the share, {root} its square root,
# {seed} that of the run, {steps} all steps of tuning, {half} half of them, {tenth} a tenth, {fifth} a fifth.
FIXED = ('--config.groups.router.train=False',)                      # routers, as M-SMoE has it
TOP8 = ('--distil', 'teacher:weight=1.0,top=8')
MERGED = ('--distil', 'mc_smoe', *FIXED)
MC = 'mc_smoe:before={tenth},after={fifth}'
# What has every share of SHARES.
METHODS = {
    'slim': [(1, 'slim_moe:keep={keep}')],
    'slim_activation': [(1, 'slim_moe:keep={keep},by=activation')],
    'slim_distilled': [(1, 'slim_moe:keep={keep}', *TOP8)],
    'slim_twice': [(0.5, 'slim_moe:keep={root}', *TOP8), (0.5, 'slim_moe:keep={root}')],
    'merge': [(1, 'merge:keep={keep}', *FIXED)],
    'merge_unaligned': [(1, 'merge:keep={keep},align=none', *FIXED)],
    'merge_distilled': [(1, 'merge:keep={keep}', *MERGED)],
    'redirect': [(1, 'merge:keep={keep},align=none,weights=head', *FIXED)],
    'average_random': [(1, 'average:keep={keep},seed={seed}', *FIXED)],
    'sub_moe': [(1, 'sub_moe:keep={keep}')],
    'uncurl': [(1, 'uncurl:keep={keep}')],
    'prune_used': [(1, 'prune:keep={keep}')],
    'prune_random': [(1, 'prune:keep={keep},by=random,seed={seed}')],
    'prune_magnitude': [(1, 'prune:keep={keep},by=magnitude')],
    'reap': [(1, 'prune:keep={keep},by=reap')],
    'stun': [(1, 'stun:keep={keep}')],
    'wanda': [(1, 'wanda:keep={keep}')],
    'owl': [(1, 'wanda:keep={keep},allocation=owl')],
    'stun_wanda': [(0.01, 'stun:keep={root}'), (0.99, 'wanda:keep={root}')],
    'mpoe': [(1, 'mpoe:keep={keep},parts=3')],
}
# What has other shares, or fewer. Of MC-SMoE merging leaves 0.75 or 0.5, and U V + S 2/3 or 1/2 of that.
OTHERS = {
    ('full', 1.0): [(1, 'prune:keep=1.0')],
    ('merge', 0.125): [(1, 'merge:keep=0.125', *FIXED)],
    ('mc_smoe', 0.5): [(0.5, 'merge:keep=0.75', *MERGED), (0.5, f'{MC},ratio=0.25,keep=0.4167')],
    ('mc_smoe', 0.25): [(0.5, 'merge:keep=0.5', *MERGED), (0.5, f'{MC},ratio=0.2,keep=0.3')],
    ('mos', 0.667): [(1, 'pr_moe:keep=0.667', '--distil', 'pr_moe:until={half}')],
    ('ea_quant', 0.25): [(1, 'ea_quant:bits=8')],
    ('ea_quant', 0.125): [(1, 'ea_quant:bits=4')],
    ('d2moe', 0.1875): [(1, 'd2moe:keep=0.1875,bits=8,least=4')],
    ('d2moe', 0.09375): [(1, 'd2moe:keep=0.09375,bits=4,least=2')],
    ('compressed_experts', 1.0): [(1, 'compressed_experts:keep=0.5')],
}
HALVES = ('compressed_experts',)         # of a token's experts: no method for a token with one
SCRATCH = 0.5                            # share of the experts that models from scratch have, or stand for


def runs(size='small'):
  """Yields the starts of every seed, what is made of them, and smaller models from scratch, one dense."""
  for seed in sizes.seeds(size):
    yield dense(size, f'dense_{SCRATCH}', seed)
    for name in STARTS:
      yield start(size, name, name, seed)
      yield start(size, name, f'{name}_scratch_{SCRATCH}', seed, int(EXPERTS * SCRATCH))
      for (method, share), stages in cells(name).items():
        yield from made(size, name, method, share, stages, seed)


def cells(name):
  """Returns dict (method, share) -> stages of what is made of a start."""
  table = {(method, share): stages for share in SHARES for method, stages in METHODS.items()} | OTHERS
  return {cell: stages for cell, stages in table.items() if name == 'top2' or cell[0] not in HALVES}


def share(called, name, method):
  """Returns what a run `called` so leaves, if it is of this method, and of this start or of none; else None.

  >>> share('top2_slim_0.5', 'top2', 'slim'), share('top2_slim_twice_0.5', 'top2', 'slim')
  (0.5, None)
  """
  begin, _, number = called.rpartition('_')
  return float(number) if begin in (f'{name}_{method}', method) else None


def start(size, name, called, seed, experts=EXPERTS):
  """Returns (name, experiment, overrides) of a model from scratch; one of fewer experts is tuned as well."""
  method, router = STARTS[name]
  scored = {} if experts == EXPERTS else SCORED
  steps = STEPS[size][0] + (STEPS[size][1] if experts < EXPERTS else 0)
  return called, f'lm/stdlib:method={method}', SPARSE | usual(size) | scored | router | {
      'blocks.m.experts.d_ff': WIDTH[size], 'blocks.m.router.num_experts': experts, 'train.steps': steps,
      'seed': seed}


def dense(size, called, seed):
  """Returns (name, experiment, overrides) of a dense model with as many parameters as half of the experts."""
  return called, 'lm/stdlib:method=dense', {'model.layers': SPARSE['model.layers']} | usual(size) | SCORED | {
      'blocks.m.d_ff': int(WIDTH[size] * EXPERTS * SCRATCH), 'train.steps': sum(STEPS[size]), 'seed': seed}


def usual(size):
  """Returns the overrides of all models from scratch."""
  return (TINY if size != 'large' else {}) | (sizes.SMOKE if size == 'smoke' else sizes.WHOLE)


def made(size, name, method, share, stages, seed):
  """Yields the run of each stage of a method; the last one has the method's name."""
  total, run = STEPS[size][1], start(size, name, name, seed)
  words = dict(keep=share, root=round(math.sqrt(share), 4), seed=seed, half=total // 2 or 1,
               tenth=total // 10, fifth=total // 5)
  for number, (part, surgery, *flags) in enumerate(stages, 1):
    fill = lambda text: text if text.startswith('--config') else text.format(**words)
    called = f'{name}_{method}_{share}' + (f'_stage{number}' if number < len(stages) else '')
    run = dict(name=called, overrides=TUNING | {'train.steps': max(int(part * total), 1), 'seed': seed},
               start=dict(run=run, command='compress', method=fill(surgery),
                          flags=['--evaluate', *map(fill, flags)]))
    yield run
