r"""Language models without attention: gMLP, and the sparse all-MLP with both of its feature routers.

Sparse all-MLP (arXiv:2203.06850); gMLP (arXiv:2105.08050). The paper prints no result for this size, and
the sizes of its own models are not known for sure (see paper.py): there is no configuration of them.
Expected loss on equal positions: gmlp about that of a Transformer at equal FLOPs, heads below gmlp,
deterministic below heads and not above partial. bidirectional is absurdly low: it sees what it predicts (it
is here to show the leak).
Differs: size, optimizer and data are ours: C4/en in place of RoBERTa's corpus and CC-100. The wiring is that
of layers.py. The chunks of partial prediction are balanced by Switch's loss.

  stmoe train smlp/small --workdir runs/smlp
  stmoe train smlp/small:model=partial,loss_from=0.2
  stmoe train smlp/small:smoke                        laptop, about a minute
  model = deterministic | partial | heads | gmlp | bidirectional
  loss_from = share of every row that is not scored: 0.2 to compare other models with partial, which needs it
"""

from stmoe import errors
from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.smlp import layers
from stmoe.configs.smlp import paper

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('model=partial,loss_from=0.2', 'model=heads', 'model=gmlp', 'model=bidirectional')

EXPERTS = paper.OURS['experts']
# model -> what mixes positions in every fourth layer: the router of sMoE, or fields of the dense map.
SPARSE = dict(
    deterministic=dict(router=dict(name='smlp_deterministic', num_experts=EXPERTS)),
    partial=dict(executor='blocks', router=dict(name='partial_prediction', num_experts=EXPERTS,
                                                prefix=paper.PREFIX, allow_causal=True)))
DENSE = dict(heads=dict(heads=EXPERTS), gmlp={}, bidirectional=dict(causal=False, allow_causal=True))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, model='deterministic', loss_from=0.0)
  chosen, fields = paper.OURS, common.choose('model', args.model, SPARSE | DENSE)
  if args.model == 'partial' and args.loss_from < paper.PREFIX:
    raise errors.UserError(f'model=partial sees the first {paper.PREFIX} of a row before it predicts them; '
                           f'nearest: model=partial,loss_from={paper.PREFIX}')
  d_model, d_ff, length, batch_size, together = chosen['d_model'], chosen['d_ff'], chosen['length'], 64, 8
  if args.smoke:
    d_model, d_ff, length, batch_size, together = 64, 128, 128, 16, 2

  c = common.config()
  # A sparse layer is the last of every four layers; dense models have a gMLP block alone in its place.
  sparse, repeats = args.model in SPARSE, 1 if args.smoke else chosen['layers'] // 4
  c.model = dict(name='mlp_lm', vocab_size=384 if args.smoke else 32128, d_model=d_model,
                 layers=(('gggst' if sparse else 'gggs', repeats),), tie_embeddings=True,
                 dtype='float32' if args.smoke else 'bfloat16', scan_layers=True, remat='elementwise')
  make = layers.smoe if sparse else layers.gmlp
  c.blocks = dict(g=layers.gmlp(length, d_ff), s=make(length, d_ff, **fields))
  if sparse:
    c.blocks.t = layers.tmoe(d_ff, EXPERTS, group_size=together * length)
  c.losses.balance = (chosen['balance'] if args.model == 'partial' else 0.0, 'mean')
  c.data = common.data('c4', length=length, vocab='train:32000', loss_from=args.loss_from)
  c.optimizer = common.adamw(0.98, 0.0)      # without decay: Adam
  c.schedule = dict(name='linear', peak=chosen['learning_rate'], warmup_steps=2000)
  c.train.update(steps=60_000, batch_size=batch_size, clip=0.1, log_every=100)
  c.eval.update(batch_size=batch_size, batches=200)
  if args.smoke:
    c.data.update(task='stdlib', vocab='bytes')
    c.schedule.warmup_steps = 5
    c.train.update(steps=20, clip=1.0, log_every=5, stats_every=10)
    c.eval.update(every=10, batches=2)
    c.checkpoint.update(every=10)
  return c.lock()
