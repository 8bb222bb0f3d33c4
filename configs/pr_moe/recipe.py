"""A pre-training run of a PR-MoE language model, or of what it is compared with."""

from stmoe import errors
from stmoe.configs import common
from stmoe.configs.pr_moe import paper


def pyramid(layers, wide):
  """Returns the pattern of `layers` layers, every second one sparse: m, and p in the last `wide` of these.

  Raises UserError for no layers or too many, and for more wide layers than there are sparse ones.
  """
  least = 1 if layers > 0 else max(1, 2 * wide)
  pairs = common.whole('layers', layers, least, common.MOST_LAYERS) // 2
  if not 0 <= wide <= pairs:
    raise errors.UserError(f'wide={wide}: {layers} layers have {pairs} sparse ones, of which the last may be '
                           f'wide; nearest: {min(max(wide, 0), pairs)}')
  segments = (('dm', pairs - wide), ('dp', wide), ('d', layers % 2))
  return tuple(segment for segment in segments if segment[1])


def dense(d_model):
  """Returns the dense layer of a GPT: F = 4 D, with biases."""
  return dict(layer='dense', d_ff=4 * d_model, activation='gelu', use_bias=True)


def sparse(d_model, experts, k=1, residual=True, mix='learned'):
  """Returns a sparse layer, with the dense network beside it if `residual`."""
  # A random part of an expert's tokens is kept, whatever comes later: so the published models were trained.
  router = dict(name='pr_moe', num_experts=experts, k=k, min_capacity=paper.MIN_CAPACITY, allow_causal=True,
                capacity_factor=tuple(k * factor for factor in paper.CAPACITY_FACTOR))
  routed = dict(executor='gather', group_size=None, router=router,
                experts=dict(name='mlp', d_ff=4 * d_model, activation='gelu', use_bias=True, init_scale=1.0))
  if not residual:
    return dict(routed, layer='moe')
  return dict(dense(d_model), layer='pr_moe', mix=mix, inner=dict(routed, name='moe'))


def pretraining(size, layers, blocks):
  """Returns the unlocked config of a language model of an entry of paper.SIZES.

  Args:
    layers: pattern of the stack.
    blocks: its sparse layers by letter; d is the dense one.
  """
  c = common.config()
  c.model = dict(name='lm', vocab_size=paper.VOCAB, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['head_dim'], layers=layers, tie_embeddings=True, dtype='bfloat16',
                 scan_layers=True, remat='full')
  c.blocks = dict(d=dense(size['d_model'])) | blocks
  c.losses = dict(balance=(paper.BALANCE if any(map(common.sparse, blocks.values())) else 0.0, 'sum'))
  c.data = common.data('c4', paper.LENGTH, vocab='train:50000')
  row = size['batch'] * paper.LENGTH
  common.train(c, steps=round(paper.TOKENS / row), batch_size=size['batch'], peak=size['peak'],
               warmup_steps=round(paper.WARMUP_TOKENS / row), end_fraction=size['end'] / size['peak'])
  c.mesh.expert = 8
  return c


def smoke(c):
  """Shrinks `c` as `common.smoke` does, with dense networks as small; the pyramid stays one."""
  for letter, block in c.blocks.items():
    routed = common.sparse(block)
    if routed is not None:
      routed.router.num_experts = 4 if letter == 'm' else 8
      block.update(dict(d_ff=128) if 'inner' in block else {})
  c.schedule.warmup_steps = 5
  return common.smoke(c)
