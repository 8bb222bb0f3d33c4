"""What the best routes through big, small and skipped modules are worth, in a trained model: `stmoe routes`.

Every token tries all routes (Duo-LLM, arXiv:2410.10846). While it does, the keys and values of all tokens
before it are those of one default route. Losses are in nats a token, of tokens that are routed alone.
"""

from collections.abc import Callable
import copy
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.analysis.routing import oracle
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.hosts import distributed
from stmoe.parts import cache as caches
from stmoe.runs import directory as rundir
from stmoe.train import opened

MOST = 4096                              # routes that are tried
TARGETS, WEIGHTS = 'decoder_target_tokens', 'decoder_loss_weights'


def search(run: str | pathlib.Path, step: int | None = None, rows: int = 4, draws: int = 100,
           default: str = 'big', seed: int = 0, say: Callable = print, devices=None) -> dict:
  """Returns what routes are worth in the newest checkpoint of `run`, or that of `step`.

  tokens, layers  of the rows, and L
  learned, learned_big  the loss of the router as it evaluates, and its share of big modules
  budgets  for every number m of big layers a dict: m, oracle (exactly m), at_most (m), before, fixed (one
           route for all tokens), random (routes drawn by token), big_share [L] of the oracle, difficulty

  before is the loss by the route that was the oracle's for the token before.
  The best fixed route and the best of `draws` random ones are chosen on the first half of the rows. Their
  losses are of the second half. All else is of all rows.

  Args:
    rows:    of evaluation data.
    default: module that other tokens have while one tries its routes, 'big' or 'small'.
  Raises:
    UserError: a model that is not made of big and small modules, or of too many layers.
  """
  cfg = copy.deepcopy(rundir.opened(run, step))
  with cfg.unlocked():
    cfg.eval.batch_size = max(rows, jax.device_count() if devices is None else len(devices))
  with opened.run(cfg, run, say, devices) as (plan, source):
    at, state, _, _ = opened.restore(plan, run, source.info()['vocab'], say, step)
    model = plan.model(state['params'], state['router_state'])
    shard = distributed.shard(plan.mesh, cfg.eval.batch_size)
    first = next(iter(pipeline.eval_batches(cfg, shard[0], shard[1], source)))
    batch = {name: jnp.asarray(a[:rows]) for name, a in first.items()}
    return dict(step=at) | of_model(model, batch, draws, default, seed)


def of_model(model, batch: dict, draws: int = 100, default: str = 'big', seed: int = 0) -> dict:
  """Returns the dict of `search` of a model and a batch of evaluation."""
  layers, ways = size(model)
  every = oracle.routes(layers, ways)
  routed = modules.wrapped(model, lookup.constructor('router', 'route'))
  weights = np.asarray(batch[WEIGHTS]) > 0                           # [B, T]
  context = every[(every == dict(big=0, small=1)[default]).all(axis=1)][0]
  tables = [np.asarray(losses_of_routes(routed, row, every, context))[real]        # [tokens, R] each
            for row, real in zip(_rows(batch), weights)]
  found, before = oracle.best(np.concatenate(tables), every), oracle.of_the_token_before(tables, every)
  loss, aux = losses(model, batch)
  shares = [float(report.load[0] / report.load.sum()) for report in aux.values()]
  whole = functools.partial(_mean, np.ones(len(weights), bool), weights)
  fixed = np.asarray(losses_of_patterns(routed, batch, every[:, None, None]))      # [R, B, T]
  random = _random(every, weights.shape, draws, np.random.default_rng(seed))
  budgets = []
  for m in range(layers + 1):
    of = (every == oracle.BIG).sum(axis=1) == m
    drawn = np.asarray(losses_of_patterns(routed, batch, random[m])) if draws else None
    budgets.append(dict(
        m=m, oracle=float(found.loss_exact[m].mean()), at_most=float(found.loss_at_most[m].mean()),
        before=None if np.isnan(before[m]) else float(before[m]),
        fixed=_chosen(fixed[of], weights), random=None if drawn is None else _chosen(drawn, weights),
        big_share=found.big_share[m].tolist(), difficulty=float(found.difficulty[m].mean())))
  return dict(tokens=int(weights.sum()), layers=layers, learned=whole(np.asarray(loss)),
              learned_big=float(np.mean(shares)), budgets=budgets)


def size(model) -> tuple[int, int]:
  """Returns (L, modules of a layer) of a model of layers with one big module each, or raises UserError."""
  routers = [owner.router for owner in modules.sparse(model)]
  layers = sum(1 for stack in model.stacks() for name, layer in stack.by_name().items()
               if modules.sparse(layer))
  ways = {router.num_experts + contract.offered(router, 'num_virtual') for router in routers}
  bigs = {router.num_experts for router in routers}
  if not hasattr(model, 'extend') or bigs != {1} or len(ways) != 1 or max(ways) < 2:
    raise errors.UserError('routes are of a decoder whose layers have one big module and virtual ones, such '
                           "as router.name='duo_llm' makes; nearest: stmoe train duo_llm/testbed")
  if max(ways) ** layers > MOST:
    raise errors.UserError(f'{layers} layers of {max(ways)} modules have {max(ways) ** layers:,} routes, '
                           f'more than {MOST:,}; nearest: fewer layers')
  return layers, max(ways)


@jax.jit
def losses(model, batch: dict) -> tuple:
  """Returns (f32[B,T], dict layer -> Aux): the loss of every token as the model evaluates."""
  logits, aux = model(batch, alone=True)
  return _nll(logits, batch[TARGETS]), aux


@jax.jit
def losses_of_patterns(model, batch: dict, patterns) -> jax.Array:
  """Returns f32[R,B,T], losses of all tokens by patterns i32[R,B or 1,T or 1,L] of the layers' modules."""
  shape = (*batch[TARGETS].shape, patterns.shape[-1])

  def one(pattern):
    given = {'decoder_given/route': jnp.broadcast_to(pattern, shape)}
    return _nll(model(batch | given, alone=True)[0], batch[TARGETS])
  return jax.lax.map(one, jnp.asarray(patterns))


@jax.jit
def losses_of_routes(model, row: dict, every, context) -> jax.Array:
  """Returns f32[T,R]: the loss of each token of a row by every route, i32[R,L].

  Tokens before it have the route `context` i32[L]. Every token is a row of its own that goes on from a cache
  of the tokens before.
  """
  length = row[TARGETS].shape[1]
  cache = caches.empty(model.decoder, 1, length + 1, model.dtype)
  given = lambda route, rows: {'given/route': jnp.broadcast_to(route, (rows, route.shape[-1]))}
  _, cache = model.extend(row | given(context, 1), cache)
  before = jnp.arange(length + 1) < jnp.arange(length)[:, None]      # [T, T+1]
  last = jnp.roll(row['decoder_input_tokens'][0], 1)
  cache = cache.take(jnp.zeros(length, jnp.int32)).replace(segments=cache.segments * before, last=last)
  tokens = {name: row[name][0][:, None] for name in (
      'decoder_input_tokens', 'decoder_segment_ids', 'decoder_positions')}

  def one(route):
    x, _ = model.extend(tokens | given(route, length), cache)
    return _nll(model.logits(x), row[TARGETS][0][:, None])[:, 0]
  return jax.lax.map(one, jnp.asarray(every)).T


def _nll(logits, targets):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]


def _rows(batch):
  """Yields the rows of a batch, as batches of one."""
  for i in range(len(batch[TARGETS])):
    yield {name: a[i:i + 1] for name, a in batch.items()}


def _random(every, shape, draws, rng):
  """i32[L+1,draws,B,T,L]: for every m a route with m big layers for each token, drawn `draws` times."""
  number = (every == oracle.BIG).sum(axis=1)
  return np.stack([every[rng.choice(np.flatnonzero(number == m), (draws, *shape))]
                   for m in range(every.shape[1] + 1)])


def _chosen(values, weights):
  """The mean loss, of the second half of the rows, of the one of values [R,B,T] that is best on the first."""
  first = np.arange(len(weights)) < (len(weights) + 1) // 2
  best = np.argmin([_mean(first, weights, value) for value in values])
  return _mean(~first if not first.all() else first, weights, values[best])


def _mean(rows, weights, values):
  return float(values[rows][weights[rows]].mean())
