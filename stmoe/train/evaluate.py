"""What a target says of a whole split: exact sums, then one division."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import targets
from stmoe.core import metrics as routing
from stmoe.data import batches as pipeline
from stmoe.hosts import distributed
from stmoe.hosts import job
from stmoe.train import beside
from stmoe.train import check
from stmoe.train import state as states


AVERAGED = 'drop_frac', 'active_experts'     # metrics of routers that evaluation reports


def make(plan, draws=1, change=lambda model: model):
  """Returns the jitted `(params, router_state, batch, key) -> dict of sums` over the targets of a batch.

  Evaluation has its own capacity, no dropout and no other noise. The sums come from the target's `judge`,
  and `weight` f32[]. Those of AVERAGED are means over sparse layers, 'load' is a dict layer -> f32[E]. Only a
  router whose evaluation is random by its method (`draws_at_eval`) uses the key. With several `draws`, the
  predictions of `draws` keys are averaged (an ensemble), if the target can.
  The model that predicts is `change` of the run's. What a target has to show is 'pictures', arrays [n,...].
  """
  target = plan.target
  if draws > 1 and not hasattr(target, 'averaged'):
    raise errors.UserError(f'eval.draws={draws}: target {type(target).__name__} has no mean of several '
                           'predictions; nearest: eval.draws=1')

  def sums(params, routers, batch, key):
    model = change(plan.model(params, routers))
    predict = lambda key: targets.predict(target, model, batch, key=key, train=False)
    outputs, aux = predict(key) if draws == 1 else target.averaged(predict, jax.random.split(key, draws))
    weight = jnp.sum(target.weights(batch))
    by_layer = {name: [a.metrics[name] for a in aux.values() if name in a.metrics] for name in AVERAGED}
    averaged = {name: weight * sum(values) / len(values) for name, values in by_layer.items() if values}
    load = {layer: a.load for layer, a in aux.items()}
    shown = dict(pictures=target.pictures(outputs, batch)) if hasattr(target, 'pictures') else {}
    return targets.judge(target, outputs, batch) | dict(weight=weight, load=load) | averaged | shown

  return jax.jit(sums, out_shardings=distributed.everywhere(plan.mesh))


def run(cfg, plan, sums, state, facts, tell=lambda done, number: None, opened=None,
        complete=None, keep=lambda shown: None):
  """Returns the 'eval/...' metrics of `state` over the evaluation split of `cfg`, or eval.batches of it.

  Where evaluation is random, its keys come from the seed and each batch's number.

  Args:
    plan, sums: the blueprint, and what `make` made of it.
    facts:      of the data, from `pipeline.info`.
    tell:       called with the numbers of batches done and to do.
    opened:     the data, from `pipeline.source`; None = the data of `cfg`.
    complete:   adds to a batch what the target wants, from `beside.opened`; None = made here.
    keep:       called with what the target has for figures, dict name -> array, if it has anything.
  """
  opened = opened or pipeline.source(cfg)
  complete = complete or beside.opened(plan, facts['vocab'])
  shard = distributed.shard(plan.mesh, cfg.eval.batch_size)
  batches = pipeline.eval_batches(cfg, *shard, opened, most=cfg.eval.batches)
  number = min(cfg.eval.batches or len(batches), len(batches))
  parts, num_bytes, pictures = [], 0, {}
  key, params = states.fold(cfg.seed, 'eval'), plan.evaluated(state)
  for count, batch in enumerate(itertools.islice(batches, number), 1):
    scored = opened.num_bytes(batch) if hasattr(opened, 'num_bytes') else None
    num_bytes = None if scored is None else num_bytes + scored
    batch = complete(check.place(batch, plan.mesh))
    part = sums(params, state['router_state'], batch, jax.random.fold_in(key, count))
    of_batch = part.pop('pictures', {})
    pictures = pictures or jax.device_get(of_batch)
    _fetch_last(parts)                   # the part before, while the device computes this part
    parts.append(part)
    tell(count, number)
  _fetch_last(parts)
  total = targets.together(parts)
  load = total.pop('load')
  if not total['weight']:
    raise errors.UserError(f'evaluation: none of the targets in {number} batches of data.eval_split='
                           f'{cfg.data.eval_split!r} counts, so that there is no mean of them')
  if num_bytes is not None:
    num_bytes = sum(dict(job.exchange([shard[0], num_bytes])).values())
    total['bytes_per_token'] = bytes_per_token(facts, int(total['weight']), num_bytes)
  values = plan.target.metrics(total)
  if shown := pictures | values.pop(targets.SHOWN, {}):
    keep(shown)
  if load:                               # of the whole split: MaxVio_global of arXiv:2408.15664
    values['eval/max_vio'] = float(np.mean([routing.max_vio(layer_load) for layer_load in load.values()]))
  return values | {f'eval/{name}': total[name] / total['weight'] for name in AVERAGED if name in total}


def _fetch_last(parts):
  parts[-1:] = (jax.tree.map(np.float64, jax.device_get(part)) for part in parts[-1:])


def measured(cfg, plan, opened):
  """Returns the `measures` of the plan's target that its evaluation on the data `opened` of `cfg` has."""
  nothing = dict.fromkeys(('decoder_target_tokens', 'decoder_loss_weights'), np.zeros((0, 1), np.int32))
  known = hasattr(opened, 'num_bytes') and opened.num_bytes(nothing) is not None
  measures = {name: m for name, m in plan.target.measures.items() if known or not m.of_bytes}
  judged = check.judged(cfg, plan) if any(m.of for m in measures.values()) else {}
  return {name: m for name, m in measures.items() if not m.of or m.of in judged}


def bytes_per_token(facts, tokens, num_bytes):
  """Returns the bytes of text per token scored; EOS counts among the tokens, not the bytes.

  Where only some of the split was scored, the bytes are counted in the scored text. They are taken from its
  pieces: the share of all bytes of pieces, times the bytes of text. The two differ where a vocabulary
  rewrites text.

  Args:
    facts:     of the data, from `pipeline.info`.
    tokens:    scored. num_bytes: of their pieces.
  """
  if tokens == facts['num_tokens']:
    return facts['bytes_per_token']
  return num_bytes / tokens * facts['num_bytes'] / facts['piece_bytes']


def describe(target, values):
  """Returns as one line the 'eval/...' metrics that a target has words for."""
  return ', '.join(measure.said.format(values[name]) for name, measure in target.measures.items()
                   if measure.said and name in values)
