"""What rewiring on a prompt is worth for the text that follows: `stmoe rewire`.

The routers of each row adapt to its first tokens (`decode/strategies/rewire.py`). The true tokens that follow
are then scored with and without. All tokens are routed by themselves, as in decoding.
"""

from collections.abc import Callable
import copy
import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.analysis.routing import choices
from stmoe.data import batches as pipeline
from stmoe.decode import generate
from stmoe.decode.strategies import rewire
from stmoe.hosts import distributed
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import opened

IDS, SEGMENTS = 'decoder_input_tokens', 'decoder_segment_ids'
TARGETS, WEIGHTS = 'decoder_target_tokens', 'decoder_loss_weights'
WAYS = 'plain', 'adapted', 'random'
PARTS = 'prompts', 'texts'


def measure(run: str | pathlib.Path, decode: dict, prompt: int | None, rows: int = 64, cfg=None,
            step: int | None = None, say: Callable = print, devices=None) -> dict:
  """Returns what the vectors of `decode` are worth in a checkpoint of `run`.

  step, rows, prompt   of the checkpoint; rows that were scored; their tokens that are read first
  prompts, texts       way -> bits per byte of the prompt, and of the text behind it
  gain, gain_error     of texts, plain minus adapted, and its standard error over rows (None of one)
  improved             prompts, texts -> the share of rows of which this became likelier
  changed, choices     layer -> experts of a token behind the prompt that are others than without; of how many
  largest              router -> largest entry of the vectors, each less its mean, over rows
  seconds              adapt, read -> medians over batches after the first, read of one way

  Ways are 'plain', 'adapted' and 'random': vectors of the same length in random directions.

  Args:
    decode: name 'rewire' and fields of the strategy.
    prompt: tokens of a row, start_id among them; None = half of data.length.
    rows:   of evaluation, the first.
    cfg:    the run's configuration, if not as it was trained; step: None = the newest.
  Raises:
    UserError: a model or data that cannot be adapted, or rows without anything behind the prompt.
  """
  cfg = copy.deepcopy(rundir.opened(run, step)) if cfg is None else cfg
  if not getattr(pipeline.objective(cfg), 'whole', False):
    raise errors.UserError(f'{run} has {lookup.titled(cfg.data)}; rewiring goes on with texts, it needs lm')
  prompt = cfg.data.length // 2 if prompt is None else prompt
  if not 2 <= prompt <= cfg.data.length:
    raise errors.UserError(f'--prompt {prompt}: from 2 to data.length={cfg.data.length} tokens; nearest: '
                           f'{min(max(prompt, 2), cfg.data.length)}')
  strategy = lookup.recipe('strategy', decode)()
  with opened.run(cfg, run, say, devices) as (plan, source):
    generate.check(plan.model(plan.shapes['params'], plan.shapes['router_state']), strategy)
    at, state, _, _ = opened.restore(plan, run, source.info()['vocab'], say, step)
    say(f'rewiring the checkpoint of step {at:,}')
    found = _found(cfg, plan, source, state, strategy.rule, prompt, rows)
    return dict(step=at, prompt=prompt) | _summed(found, source.info())


def _found(cfg, plan, source, state, rule, prompt, rows):
  """[dict of sums] of the batches with the first `rows` rows."""
  numbers, size, found = (state['params'], state['router_state']), cfg.eval.batch_size, []
  adapt, read = (jax.jit(part, out_shardings=distributed.everywhere(plan.mesh)) for part in (
      functools.partial(_adapt, plan, rule, prompt), functools.partial(_read, plan, prompt)))
  shard = distributed.shard(plan.mesh, size)
  for number, batch in enumerate(pipeline.eval_batches(cfg, *shard, source, most=-(-rows // size))):
    batch = _first(batch, rows - number * size)
    placed, key = check.place(batch, plan.mesh), jax.random.fold_in(jax.random.key(cfg.seed), number)
    vectors, adapting = _timed(adapt, *numbers, placed, key)
    sums, reading = _timed(read, *numbers, placed, vectors)
    counted = {part: batch | {WEIGHTS: batch[WEIGHTS] * mask}
               for part, mask in _parts(batch[WEIGHTS].shape[1], prompt).items()}
    sums |= dict(largest=_largest(vectors['adapted']), seconds=dict(adapt=adapting, read=reading / len(WAYS)),
                 bytes={part: source.num_bytes(of_part) for part, of_part in counted.items()})
    found.append(jax.device_get(sums))
  return found


def _first(batch, rows):
  """`batch` whose rows behind the first `rows` are empty."""
  kept = (np.arange(len(batch[IDS])) < rows)[:, None]
  return batch | {name: np.where(kept, batch[name], 0) for name in (SEGMENTS, WEIGHTS)}


def _parts(length, prompt):
  """dict part -> bool[T], which targets of a row are in it: those that a prompt shows, or all others."""
  shown = np.arange(length) < prompt - 1
  return dict(zip(PARTS, (shown, ~shown)))


def _timed(compute, *read):
  start = time.perf_counter()
  result = jax.block_until_ready(compute(*read))
  return result, time.perf_counter() - start


def _adapt(plan, rule, prompt, params, routers, batch, key):
  """dict way -> Vectors of the rows of a batch."""
  model = _unrolled(plan, params, routers)
  shown = batch | {SEGMENTS: jnp.where(jnp.arange(batch[IDS].shape[1]) < prompt, batch[SEGMENTS], 0)}
  shown = {name: a[:, :prompt] if name.startswith('decoder_') else a for name, a in shown.items()}
  zeros = rewire.zeros(model, shown)
  vectors, _ = rule.learn(rewire.adapting(model), shown, zeros, rule.chosen(model, shown))
  return dict(plain=zeros, adapted=vectors, random={
      layer: _turned(vector, jax.random.fold_in(key, layer)) for layer, vector in vectors.items()})


def _turned(vector, key):
  """Vectors f32[B,E] as long as `vector`, in random directions."""
  drawn = jax.random.normal(key, vector.shape)
  length = lambda a: jnp.linalg.norm(a, axis=-1, keepdims=True)
  return drawn / length(drawn) * length(vector)


def _unrolled(plan, params, routers):
  model = plan.model(params, routers)
  model.stacks()[-1].unroll()
  return model


def _read(plan, prompt, params, routers, batch, vectors):
  """dict of sums over the tokens of a batch: nats f32[B] of each part by way, tokens, changed experts."""
  model = choices.trace(rewire.adapting(_unrolled(plan, params, routers)))
  masks = {part: (batch[WEIGHTS] > 0) & mask for part, mask in _parts(batch[IDS].shape[1], prompt).items()}
  nats, edges = {}, {}
  for way in WAYS:
    logits, edges[way] = model(batch | rewire.given(vectors[way]), alone=True)
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[TARGETS][..., None], axis=-1)[..., 0]
    nats[way] = {part: -jnp.where(mask, right, 0).sum(axis=1) for part, mask in masks.items()}
  changed = {name: _changed(edges['plain'][name], aux, masks['texts'])
             for name, aux in edges['adapted'].items()}
  return dict(nats=nats, tokens={part: mask.sum() for part, mask in masks.items()},
              rows=masks['texts'].any(axis=1),
              changed={name: counts for name, counts in changed.items() if counts})


def _changed(before, after, mask):
  """(experts of tokens in `mask` that they did not have before, all experts); () of a layer without edges."""
  counts = []
  for name, edges, num_experts in after.edges():                     # every token is a group by itself
    old, new = before.records[name]['expert'], edges['expert']       # [B*T, k]
    live = (new < num_experts) & mask.reshape(-1, 1)
    same = (new[:, :, None] == old[:, None, :]).any(axis=2)
    counts.append(((live & ~same).sum(), live.sum()))
  return tuple(map(sum, zip(*counts)))


def _largest(vectors):
  """dict router -> the largest entry of its vectors, each less its mean, which changes no softmax."""
  return {layer: jnp.abs(v - v.mean(axis=-1, keepdims=True)).max() for layer, v in vectors.items()}


def _summed(found, facts):
  """What `measure` returns of the sums of all batches."""
  joined = jax.tree.map(lambda *a: np.concatenate([np.atleast_1d(x) for x in a]).astype(np.float64), *found)
  rows, nats = joined['rows'] > 0, joined['nats']
  if not rows.any():
    raise errors.UserError('no row of the evaluation data has a token behind the prompt; nearest: a smaller '
                           '--prompt')
  tokens = {part: int(number.sum()) for part, number in joined['tokens'].items()}
  each = {part: evaluate.bytes_per_token(facts, tokens[part], joined['bytes'][part].sum()) for part in PARTS}
  bits = lambda value, part: float(value / (math.log(2) * each[part] * tokens[part]))
  gain = (nats['plain']['texts'] - nats['adapted']['texts'])[rows]
  better = lambda part: float(np.mean(nats['adapted'][part][rows] < nats['plain'][part][rows]))
  of_a_token = lambda place: {name: float(counts[place].sum() / tokens['texts'])
                              for name, counts in joined['changed'].items()}
  return {part: {way: bits(nats[way][part].sum(), part) for way in WAYS} for part in PARTS} | dict(
      rows=int(rows.sum()), gain=bits(gain.sum(), 'texts'),
      gain_error=bits(np.std(gain, ddof=1) * math.sqrt(len(gain)), 'texts') if len(gain) > 1 else None,
      improved={part: better(part) for part in PARTS}, changed=of_a_token(0), choices=of_a_token(1),
      largest={str(layer): float(value.max()) for layer, value in joined['largest'].items()},
      seconds={what: float(np.median(values[1:] if len(values) > 1 else values))
               for what, values in joined['seconds'].items()})
