"""The T5 encoder-decoder and its pre-training (arXiv:1910.10683), on which these papers build."""

from stmoe.configs import common

# T5 1.1 (arXiv:2002.05202): widths, heads, layers of each stack; parameters as published.
SIZES = dict(
    small=dict(d_model=512, d_ff=1024, num_heads=6, head_dim=64, layers=8, params=77e6),
    base=dict(d_model=768, d_ff=2048, num_heads=12, head_dim=64, layers=12, params=250e6),
    large=dict(d_model=1024, d_ff=2816, num_heads=16, head_dim=64, layers=24, params=780e6),
    xl=dict(d_model=2048, d_ff=5120, num_heads=32, head_dim=64, layers=24, params=2.8e9),
    xxl=dict(d_model=4096, d_ff=10240, num_heads=64, head_dim=64, layers=24, params=11e9),
)
VOCAB_SIZE = 32128                 # 32,000 pieces and 100 sentinels, padded to a multiple of 128
INPUTS, TARGETS = 512, 114         # span corruption, 15 % in spans of 3
TOKENS_PER_BATCH = 2**20           # 2048 rows of 512


def model(size, encoder, decoder, tied=False, init_scale=1.0, dtype='bfloat16', remat='full'):
  """Returns the model section of a size (an entry of a SIZES table) with these layer patterns."""
  return dict(name='t5', vocab_size=VOCAB_SIZE, d_model=size['d_model'], num_heads=size['num_heads'],
              head_dim=size['head_dim'], encoder=encoder, decoder=decoder, tie_embeddings=tied,
              init_scale=init_scale, dtype=dtype, scan_layers=True, remat=remat)


def dense(d_ff, gated=True, init_scale=1.0):
  """Returns T5's dense layer: GEGLU (1.1) or ReLU (1.0)."""
  return dict(layer='dense', d_ff=d_ff, activation='gelu' if gated else 'relu', gated=gated,
              init_scale=init_scale)


def bank(d_ff, gated=True, init_scale=0.1):
  """Returns experts that are T5's dense layers; 0.1 is Switch's scale of initial variance."""
  if gated:
    return dict(name='glu', d_ff=d_ff, activation='gelu', init_scale=init_scale)
  return dict(name='mlp', d_ff=d_ff, activation='relu', init_scale=init_scale)


def sparse(router, experts, sequences):
  """Returns (encoder block, decoder block) of a sparse layer, routed in groups of `sequences` sequences.

  Differs: the references look for the group size nearest to a number of tokens. Here a group
  holds the same sequences in both stacks (ST-MoE, section 7: 2048 and 456 tokens are 4 sequences).
  """
  block = lambda length: dict(layer='moe', executor='gather', group_size=sequences * length,
                              router=dict(router), experts=dict(experts))
  return block(INPUTS), block(TARGETS)


def pretraining(steps):
  """Returns a config with the data, optimizer and batch of T5's pre-training on C4.

  The released vocabulary is not on every machine: `train:32000` trains a vocabulary of its size on the
  task; --config.data.vocab=PATH takes T5's own.
  """
  c = common.config()
  c.data = common.seq2seq('c4', INPUTS, TARGETS, vocab='train:32000')
  c.loss.z = 1e-4
  c.optimizer = dict(name='adafactor', decay_rate=0.8, clipping_threshold=1.0)
  c.schedule = dict(name='rsqrt', base=1.0, hold_steps=10000)
  c.train.update(steps=steps, batch_size=TOKENS_PER_BATCH // INPUTS, log_every=100, stats_every=1000)
  c.eval.update(every=10000, batches=100, batch_size=TOKENS_PER_BATCH // INPUTS)
  c.checkpoint.update(every=5000)
  # Experts over all devices (their number must divide the experts); the batch is over all of them too.
  c.mesh.update(data=1, expert=-1, model=1)
  return c
