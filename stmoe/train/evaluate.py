"""Loss, bits per byte, perplexity and token accuracy over a split: exact sums, then one division."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import metrics as routing
from stmoe.data import batches as pipeline
from stmoe.hosts import distributed
from stmoe.hosts import job
from stmoe.targets import ids
from stmoe.train import check
from stmoe.train import state as states


def make(plan, draws=1):
  """Returns the jitted `(params, router_state, batch, key) -> dict of f32[]` sums over real target tokens.

  Evaluation capacity, no dropout or other noise, the loss of the softmax without label smoothing;
  `drop_frac` is a mean over sparse layers, and 'load' a dict layer -> f32[E]. Only a router whose
  evaluation is random by its method (`draws_at_eval`) uses the key.
  With several `draws`, the predicted distributions of so many keys are averaged (an ensemble).
  """
  def sums(params, routers, batch, key):
    model = plan.model(params, routers)
    if draws == 1:
      logits, aux = model(batch, key=key, train=False)
    else:
      logits, aux = averaged(lambda key: model(batch, key=key, train=False), jax.random.split(key, draws))
    found = ids.task(logits, batch)
    drops = [a.metrics['drop_frac'] for a in aux.values() if 'drop_frac' in a.metrics]
    tokens = ids.weights(batch).sum()
    return dict(ce=found['ce'], correct=found['correct'], tokens=tokens,
                load={layer: a.load for layer, a in aux.items()}) | (
        {'drop_frac': tokens * sum(drops) / len(drops)} if drops else {})

  return jax.jit(sums, out_shardings=distributed.everywhere(plan.mesh))


def averaged(predict, keys):
  """Returns (logits f32[B,T,V], aux) of the mean of the distributions that `predict` gives for each key.

  Args:
    predict: key -> (logits f32[B,T,V], aux); one distribution at a time is in memory.
    keys:    [n] PRNG keys. Metrics are means over them.
  """
  def add(total, key):
    logits, aux = predict(key)
    return jnp.logaddexp(total, jax.nn.log_softmax(logits)), aux

  shape = jax.eval_shape(predict, keys[0])[0]
  total, aux = jax.lax.scan(add, jnp.full(shape.shape, -jnp.inf, shape.dtype), keys)
  return total - jnp.log(len(keys)), jax.tree.map(lambda x: jnp.mean(x, 0), aux)


def run(cfg, plan, sums, state, facts, tell=lambda done, number: None, opened=None):
  """Returns the 'eval/...' metrics of `state` over the evaluation split of `cfg`, or eval.batches of it.

  Where evaluation is random, its keys are those of the seed and of each batch's number.

  Args:
    plan, sums: the blueprint, and what `make` made of it.
    facts:      of the data, from `pipeline.info`.
    tell:       called with the numbers of batches done and to do.
    opened:     the data, from `pipeline.source`; None = that of `cfg`.
  """
  opened = opened or pipeline.source(cfg)
  shard = distributed.shard(plan.mesh, cfg.eval.batch_size)
  batches = pipeline.eval_batches(cfg, *shard, opened, most=cfg.eval.batches)
  number = min(cfg.eval.batches or len(batches), len(batches))
  total, num_bytes = None, 0
  key = states.fold(cfg.seed, 'eval')
  for done, batch in enumerate(itertools.islice(batches, number), 1):
    scored = opened.num_bytes(batch) if hasattr(opened, 'num_bytes') else None
    num_bytes = None if scored is None else num_bytes + scored
    batch = check.place(batch, plan.mesh)
    part = jax.device_get(sums(state['params'], state['router_state'], batch, jax.random.fold_in(key, done)))
    part = jax.tree.map(np.float64, part)
    total = part if total is None else jax.tree.map(np.add, total, part)
    tell(done, number)
  tokens, load = total.pop('tokens'), total.pop('load')
  mean = {name: value / tokens for name, value in total.items()}
  values = {'eval/loss': mean['ce'], 'eval/perplexity': float(np.exp(np.float64(mean['ce']))),
            'eval/accuracy': mean['correct'], 'eval/tokens': int(tokens)}
  if num_bytes is not None:
    per_token = bytes_per_token(facts, int(tokens), sum(dict(job.exchange([shard[0], num_bytes])).values()))
    values['eval/bits_per_byte'] = bits_per_byte(mean['ce'], per_token)
  if load:                               # of the whole split: MaxVio_global of arXiv:2408.15664
    values['eval/max_vio'] = float(np.mean([routing.max_vio(each) for each in load.values()]))
  return values | ({'eval/drop_frac': mean['drop_frac']} if 'drop_frac' in mean else {})


def bytes_per_token(facts, tokens, num_bytes):
  """Returns the bytes of text per token scored; EOS counts among the tokens, not the bytes.

  Where only some of the split was scored, these are the bytes of what was scored: of its pieces, whose
  share of all bytes of pieces is taken of the bytes of text, which differ where a vocabulary rewrites it.

  Args:
    facts:     of the data, from `pipeline.info`.
    tokens:    scored. num_bytes: of their pieces.
  """
  if tokens == facts['num_tokens']:
    return facts['bytes_per_token']
  return num_bytes / tokens * facts['num_bytes'] / facts['piece_bytes']


def bits_per_byte(loss, bytes_per_token):
  """Returns the loss in bits per byte of text, from nats per token: 8.0 is a uniform guess of bytes."""
  return loss / math.log(2) / bytes_per_token


def describe(values):
  """Returns 'eval/...' metrics as one line."""
  text = f'eval loss {values["eval/loss"]:.4f}, accuracy {100 * values["eval/accuracy"]:.1f}%'
  if 'eval/bits_per_byte' in values:
    text += f', {values["eval/bits_per_byte"]:.4f} bits per byte'
  return text
