"""What is compiled: one sparse language model on 8, 64 and 512 chips, the batch growing with the chips."""

ROWS_PER_CHIP = 8
EXPERTS = 64
CHIPS = (8, 64, 512)
NAME = 'lm/text:method=switch'
# A model wide enough for matrix products to be most of the work, and shallow: two units of two layers.
MODEL = ('model.d_model=1024', 'model.num_heads=16', "model.layers=(('dm',2),)", 'model.dtype=float32',
         'model.vocab_size=32128', 'model.remat=full', 'blocks.d.d_ff=4096', 'blocks.m.experts.d_ff=4096',
         f'blocks.m.router.num_experts={EXPERTS}', 'blocks.m.executor=all_to_all')
# Every chip holds all parameters whole but the experts, or all parameters are split.
RULES = {'expert parallel': '', 'fsdp': 'fsdp'}


def runs(chip='cpu'):
  """Yields (run_name, experiment, overrides, topology) for virtual devices, or for 'v5p', 'h100'."""
  for label, rules in RULES.items():
    for chips in CHIPS:
      expert, rows = min(chips, EXPERTS), ROWS_PER_CHIP * chips
      mesh = (f'mesh.expert={expert}', f'mesh.data={chips // expert}', f'mesh.rules={rules}',
              f'train.batch_size={rows}', f'eval.batch_size={rows}')
      side = round(chips ** (1 / 3))
      shape = f'{side}x{side}x{side}' if chip in ('v4', 'v5p') else chips
      yield f'{label}, {chips} chips', NAME, (*MODEL, *mesh), f'{chip}:{shape}'
