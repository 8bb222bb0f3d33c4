"""One dense model, then as many FLOPs again: dense, in chunks, in copies, by domains."""

from stmoe.experiments import sizes

STEPS = {'smoke': (4, 4), 'small': (800, 300), 'large': (4000, 1500)}    # of the dense model, and more of it
D_FF, EXPERTS = 256, 8
# Read-ME makes an expert of each task.
MODEL = {'model.d_model': 64, 'model.num_heads': 1, 'data.length': 128,
         'data.mixture': "(('stdlib', 0.5), ('stdlib_pairs', 0.5))", 'losses.z': "(0.0, 'mean')"}
TRAINING = {'train.batch_size': 8, 'schedule.peak': 4e-3, 'schedule.warmup_steps': 50, 'train.log_every': 50,
            'eval.batch_size': 64, 'eval.batches': 8}
# Of upcycled layers: no token is dropped.
SPARSE = {'model.layers': "(('m', 3),)", 'blocks.m.router.second_policy': 'all',
          'blocks.m.router.capacity_factor': '(None, None)'}
MORE = {'schedule.peak': 2e-3, 'schedule.warmup_steps': 10}
# Name -> (FLOPs of a step over a dense step, method of `stmoe factorise`). FLOPs are those that a run counts
# at the small size: of all that computes a token, a teacher's layers included.
FACTORISED = {
    'dense_more': (1.0, 'dynamic_dino:copies=1,k=1'),                # one copy whole: the dense model
    'dynamic_dino': (1.007, 'dynamic_dino:copies=4,k=2'),
    'factor_llm': (1.226, 'factor_llm:num_experts=4'),
    'factor_llm_free': (0.781, 'factor_llm:num_experts=4,prior=none'),
    'read_me': (2.002, 'read_me:share=0.5,steps={turn}'),
}
# Name -> (FLOPs of a step, width of an expert, experts, flags of `stmoe upcycle`).
UPCYCLED = {
    'upcycled': (1.451, D_FF, EXPERTS, []),
    'virtual_groups': (1.014, D_FF // 2, 2 * EXPERTS, ['--granularity', '2']),
}


def runs(size='small'):
  """Yields the dense model of every seed, and all that is made of it."""
  steps, more = STEPS.get(size, STEPS['small'])
  usual = sizes.SMOKE if size == 'smoke' else sizes.WHOLE
  for seed in sizes.seeds(size):
    fields = MODEL | TRAINING | usual | {'seed': seed}
    dense = 'dense', 'lm/stdlib:method=dense', fields | {
        'model.layers': "(('d', 3),)", 'blocks.d.d_ff': D_FF, 'train.steps': steps}
    yield dense
    equal = lambda cost, more=more: {'train.steps': max(round(more / cost), 1)}
    for name, (cost, method) in FACTORISED.items():
      yield dict(name=name, overrides=MORE | {'seed': seed} | equal(cost),
                 start=dict(run=dense, command='factorise', flags=['--evaluate'],
                            method=method.format(turn=max(more // 30, 1))))
    for name, (cost, d_ff, experts, flags) in UPCYCLED.items():
      bank = {'blocks.m.experts.d_ff': d_ff, 'blocks.m.router.num_experts': experts}
      yield dict(name=name, experiment='lm/stdlib:method=st_moe',
                 overrides=fields | MORE | SPARSE | bank | equal(cost),
                 start=dict(run=dense, flags=['--step', 'zero', *flags]))
