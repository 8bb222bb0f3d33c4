"""The fields of every experiment that are about running it, not about its science, with their defaults."""

import ml_collections

from stmoe import errors
from stmoe import ranges


MOST_LAYERS = ranges.Layers.repeats.high


def config(seed=0):
  """Returns an unlocked ConfigDict with the sections an experiment adds its own to.

  The caller assigns `model`, `blocks`, `data`, `optimizer`, `schedule` and what differs here.
  """
  c = ml_collections.ConfigDict()
  c.seed = seed
  # Router losses: (coefficient, reduction over layers 'mean' | 'sum'); 0.0 leaves the term out.
  c.losses = dict(balance=(0.0, 'mean'), z=(0.0, 'mean'))
  # passes=2: every batch runs twice with different keys, and `consistency` weighs the divergence between
  # the two predictions (THOR, R-Drop); the losses of the passes add up.
  # sigmoid: a yes or no of every class instead of a softmax; evaluation reports the softmax's loss.
  c.loss = dict(name='ids')
  # clip: global norm of the gradient, 0.0 = none; stop_after_bad: non-finite steps in a row.
  c.train = dict(steps=1000, batch_size=32, microbatches=1, clip=0.0, log_every=50, stats_every=500,
                 stop_after_bad=10)
  # Which parameters train, and how, may be said in c.groups (stmoe/train/groups.py).
  # batches: 0 = the whole split; draws: predictions that are averaged, where evaluation is random.
  c.eval = dict(every=500, batches=0, batch_size=32, draws=1)
  c.checkpoint = dict(every=500, keep=2, async_save=True)
  # -1: the devices that other axes leave over. rules: how logical axes are split over them where that is not
  # the default: 'fsdp', 'folded', 'axis=mesh axis', several with commas (stmoe/axes.py).
  c.mesh = dict(data=-1, expert=1, model=1, rules='')
  # Services that show the metrics, beside metrics.jsonl: tensorboard, wandb, trackio, mlflow.
  c.log = dict(writers=('tensorboard',))
  # start: first profiled step, -1 = none.
  c.profile = dict(start=-1, steps=3)
  return c


def adamw(b2=0.95, weight_decay=0.1):
  """Returns the section `optimizer` of AdamW as most papers have it, or where a paper says nothing."""
  return dict(name='adamw', b1=0.9, b2=b2, eps=1e-8, weight_decay=weight_decay)


def train(c, steps, batch_size, *, peak=3e-4, warmup_steps=2000, end_fraction=0.1, optimizer=None,
          eval_every=1000, eval_rows=256, save_every=1000):
  """Gives `c` the sections that say how a language model trains: this project's where a paper says nothing.

  AdamW, a cosine, gradients of norm 1 at most, 64 batches of `eval_rows` to evaluate.
  """
  c.optimizer = optimizer or adamw()
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=warmup_steps, end_fraction=end_fraction)
  c.train.update(steps=steps, batch_size=batch_size, clip=1.0, log_every=100, stats_every=1000)
  c.eval.update(every=eval_every, batches=64, batch_size=eval_rows)
  c.checkpoint.update(every=save_every)


# Router losses of compared layers: name -> (coefficient, reduction over layers); 0.0 leaves the term out.
NO_LOSSES = dict(balance=(0.0, 'mean'), z=(0.0, 'mean'))
BALANCE = dict(balance=(1e-2, 'mean'), z=(0.0, 'mean'))        # Switch section 2.2: alpha = 0.01


def sparse(block):
  """Returns the section of `block` that has a router, however deep it is wrapped; None without a router."""
  while block is not None and 'router' not in block:
    block = block.get('inner')
  return block


def innermost(router):
  """Returns the section of the router that `router` is around, however often it is wrapped, or itself."""
  while 'inner' in router:
    router = router['inner']
  return router


def moe(router, d_ff, group_size=None, experts='mlp', **fields):
  """Returns the sparse layer of `router` with experts of width `d_ff`, initialised like dense layers.

  `blocks` is the fast executor of a CPU, where compared models are made to run. On an accelerator
  take --config.blocks.m.executor=gather; the numbers are the same. `fields` are more fields of the experts.
  """
  return dict(layer='moe', executor='blocks', group_size=group_size, router=router,
              experts=dict(name=experts, d_ff=d_ff, init_scale=1.0, **fields))


def compared(block, losses=NO_LOSSES, backbone='lm', pattern=None, loss=None, model=None, sizes=()):
  """Returns a row of a METHODS table: how `configs/lm` puts a method beside other methods.

  Args:
    block:    function (d_ff, num_experts, group_size) -> the compared layer, of the active FLOPs of a dense
      layer of width d_ff; or several blocks by letter, which the pattern then uses.
    losses:   router losses, as in section `losses` of a configuration.
    backbone: 'lm', or the model that the method needs.
    pattern:  function of the number of (dense, compared) pairs -> layers; None = (('dm', pairs),).
    loss:     fields of section `loss`.
    model:    fields of section `model`.
    sizes:    names of further sizes that `block` takes as keywords: 'd_model', 'length' (of a row), ...
  """
  return dict(block=block, losses=losses, backbone=backbone, pattern=pattern, loss=loss or {},
              model=model or {}, sizes=sizes)


def schedule(c):
  """Ties `total_steps` of the routers of `c` that have it to train.steps, also when that changes."""
  for outer in c.blocks.values():
    block = sparse(outer)
    if block is not None and 'total_steps' in block.router:
      block.router.total_steps = c.train.get_oneway_ref('steps')


def choose(key, name, table):
  """Returns `table[name]`; raises UserError naming the argument `key` and the nearest names."""
  if name not in table:
    near = errors.nearest(name, table)
    short = near and len(table) > errors.MANY                        # a name like none is told all
    every = f'of {len(table)}' if short else f'there are: {", ".join(map(str, table))}'
    raise errors.UserError(f'{key}={name} does not exist{near} ({every})')
  return table[name]


def whole(key, value, low=1, high=ranges.Count.high):
  """Returns `value` of the argument `key`; raises UserError unless it is a whole number from low to high."""
  return ranges.Whole(low, high).check(key, value)


def data(task, length, vocab='bytes', **fields):
  """Returns the data section of a language model: rows of `length` tokens of `task`."""
  return dict(dict(task=task, files=(), vocab=vocab, extra_ids=0, objective='lm', length=length,
                   join=True, pack=True, mixture=(), shuffle=True, loss_from=0.0, replaced=0.0,
                   eval_replaced=0.0, eval_split='validation', cache_dir=''), **fields)


def seq2seq(task, inputs_length, targets_length, vocab='bytes', **fields):
  """Returns the data section of an encoder-decoder: span corruption (T5: 15 %, mean span 3)."""
  return dict(dict(task=task, files=(), vocab=vocab, extra_ids=100, objective='span_corruption',
                   inputs_length=inputs_length, targets_length=targets_length, noise_density=0.15,
                   mean_span_length=3.0, join=True, pack=True, mixture=(), shuffle=True,
                   replaced=0.0, eval_replaced=0.0, eval_split='validation', cache_dir=''), **fields)


def pairs(task, inputs_length, targets_length, vocab='bytes', **fields):
  """Returns the data section of translation and other text-to-text pairs, several in a row of training."""
  return dict(dict(task=task, files=(), vocab=vocab, extra_ids=0, objective='seq2seq',
                   inputs_length=inputs_length, targets_length=targets_length, join=False, pack=True,
                   mixture=(), shuffle=True, replaced=0.0, eval_replaced=0.0, eval_split='validation',
                   cache_dir=''), **fields)


def images(task, image_size, channels=3, **fields):
  """Returns the data section of image classification: square images, pixels from -1 to 1."""
  return dict(dict(task=task, files=(), label='', objective='classification', image_size=image_size,
                   channels=channels, central=1.0, crop=1.0, flip=False, mean=0.5, std=0.5, shuffle=True,
                   eval_split='validation', cache_dir=''), **fields)


def noise(task, image_size, channels=3, **fields):
  """Returns the data section of images to be found in noise; see `images`."""
  section = images(task, image_size, channels, objective='diffusion')
  return dict(section, levels='uniform', label_dropout=0.1) | fields


def spans(task, inputs_length, vocab='bytes', **fields):
  """Returns the data section of extractive question answering: windows of 384 tokens share 128 in BERT's."""
  eda = dict(files=(), copies=4, share=0.1, synonyms='')
  return dict(dict(task=task, files=(), vocab=vocab, extra_ids=0, objective='spans',
                   inputs_length=inputs_length, targets_length=2, stride=128, question_length=64,
                   answer_length=15, eda=eda, shuffle=True, eval_split='validation', cache_dir=''), **fields)


def smoke_spans(c):
  """Shrinks a question answerer as `smoke` does: bytes of questions about the standard library."""
  c.model.update(vocab_size=384, d_model=64, num_heads=2, head_dim=32, length=256)
  c.model.encoder = tuple((letters, 1) for letters, _ in c.model.encoder)
  for section in (*c.blocks.values(), c.model.head):
    if 'd_ff' in section:
      section.d_ff = 128
    if 'experts' in section:
      section.experts.d_ff = 128
      shrink(section.router)
    if 'router' in section and section.get('group_size'):
      section.group_size = 2 * 256 if section is not c.model.head else 2
  c.data.update(task='stdlib_questions', files=(), vocab='bytes', inputs_length=256, stride=64,
                question_length=48, answer_length=64)
  c.eval.examples = 8
  return _short(c)


def shrink(router):
  """Gives a router, or the one that it is around, at most 8 experts, and a token at most those 8."""
  router = innermost(router)
  if router.num_experts > 8 and router.get('k'):
    router.k = min(router.k, 8)
  router.num_experts = min(router.num_experts, 8)


def smoke_images(c):
  """Shrinks an image classifier as `smoke` does: on the digits of scikit-learn, patches of 2 x 2 pixels."""
  c.model.update(vocab_size=10, d_model=64, num_heads=2, head_dim=32, image_size=8, patch_size=2, channels=1)
  c.model.layers = tuple((letters, 1) for letters, _ in c.model.layers)
  if c.model.representation:
    c.model.representation = 64
  tokens = 16 + (c.model.pooling == 'token')
  for outer in c.blocks.values():
    block = sparse(outer)
    if block is None:
      outer.d_ff = 128
      continue
    block.experts.d_ff = 128
    shrink(block.router)
    if block.get('group_size'):
      block.group_size = 2 * tokens
  c.data.update(task='digits', image_size=8, channels=1, central=1.0)
  return _short(c)


def smoke_noise(c):
  """Shrinks a denoiser as `smoke` does: digits of scikit-learn in noise, patches of 2 x 2 pixels."""
  labels = min(c.model.vocab_size, 10)
  c.model.update(vocab_size=labels, d_model=64, num_heads=2, head_dim=32, image_size=8, patch_size=2,
                 channels=1)
  c.model.layers = tuple((letters, 1) for letters, _ in c.model.layers)
  for outer in c.blocks.values():
    outer.d_ff, block = 64, sparse(outer)
    around = outer.get('around')
    if block is not None:
      block.experts.d_ff = 64
      shrink(block.router)
      if block.get('group_size'):
        block.group_size = 2 * 16
    if around is not None and 'layer' in around:
      around.layer.experts.d_ff = 64                                 # these experts are as wide as the model
  c.data.update(task='digits', image_size=8, channels=1, central=1.0, flip=False)
  return _short(c)


def smoke(c):
  """Shrinks `c` in place to run on a laptop's CPU in about a minute, and returns it locked.

  Model, layers, routers, losses, optimizer and objective stay; only widths, repeats, experts
  and lengths get small, and the data is the standard library of this Python, or pairs from it.
  """
  lengths = dict(length=128, inputs_length=128, targets_length=32)
  c.model.update(vocab_size=384, d_model=64, num_heads=2, head_dim=32)
  for stack in ('encoder', 'decoder', 'layers'):
    if stack in c.model:
      c.model[stack] = tuple((letters, 1) for letters, _ in c.model[stack])
  decoder = {letter for letters, _ in c.model.get('decoder', ()) for letter in letters}
  for letter, outer in c.blocks.items():
    block = sparse(outer)
    if block is None:
      outer.d_ff = 128
      continue
    block.get('experts', block).d_ff = 128
    shrink(block.router)
    if block.get('group_size'):
      block.group_size = 2 * lengths['targets_length' if letter in decoder else 'inputs_length']
  task = 'stdlib_pairs' if c.data.objective == 'seq2seq' else 'stdlib'
  c.data.update(task=task, files=(), vocab='bytes', **{k: v for k, v in lengths.items() if k in c.data})
  return _short(c)


def _short(c):
  """`c` with 20 steps on whatever device there is, locked."""
  c.train.update(steps=20, batch_size=16, microbatches=1, log_every=5, stats_every=10)
  c.eval.update(every=10, batches=2, batch_size=16)
  c.checkpoint.update(every=10)
  c.mesh.update(data=-1, expert=1, model=1)
  return c.lock()
