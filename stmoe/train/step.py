"""One optimizer step as one jitted function of plain data.

Gradients are summed over microbatches by a scan. Every sum is divided by a count of the
whole batch, so the result is that of the undivided batch. A step whose loss, gradient or router state
is not finite leaves parameters, optimizer and router state as they were. The update is not tested here:
holding the state until the whole update was seen takes a second state's memory. The next step's loss
shows a bad update, and `checkpoint.Checkpoints` saves no state that is not finite.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from stmoe import axes
from stmoe import router_state
from stmoe import targets
from stmoe.checkpoints import checksum
from stmoe.core import metrics as routing
from stmoe.hosts import distributed
from stmoe.train import groups
from stmoe.train import optimizers
from stmoe.train import router_losses as losses
from stmoe.train import schedules

MASK = 1 << 30                       # of the key of a step: beyond the number of any microbatch


def make(cfg, plan):
  """Returns the jitted `(state, batch) -> (state, report)`; the state given in is used up.

  report: dict of f32[] scalars under their names in metrics.jsonl, and
    'layers': dict layer -> dict metric -> f32[], 'load': dict layer -> f32[E].
  """
  rate_at = schedule(cfg, cfg.train.steps)
  microbatches, limit = cfg.train.microbatches, cfg.train.clip

  def step(state, batch):
    grads, report, aux = gradients(cfg, plan, state, batch, microbatches)
    key = jax.random.fold_in(state['key'], state['step'])
    rate, routers = rate_at(state['step']), committed(plan, state['params'], state['router_state'], aux)
    with jax.named_scope('optimizer'):
      grads = groups.mask(plan.groups, grads, jax.random.fold_in(key, MASK))
      grads, norms = groups.clip(plan.groups, grads, state['step'], limit, plan.kinds)
      finite = jnp.isfinite(norms['grad_norm']) & jnp.isfinite(report['loss/total'])
      finite &= jnp.all(jnp.array([checksum.finite(x) for x in jax.tree.leaves(routers)] or True))
      trained = plan.trainable(state['params'])
      params, opt_state = plan.optimizer.update(grads, state['opt_state'], trained, rate, state['step'],
                                                finite)
    counts = count(state['counts'], plan.target.weights(batch), finite)
    with jax.named_scope('metrics'):
      report |= norms | {'lr': rate, 'skipped': counts['skipped'], 'layers': describe(aux),
                         'load': {layer: a.load for layer, a in aux.items()}}
    return dict(params=groups.put(state['params'], params), opt_state=opt_state,
                router_state=optimizers.held(finite, routers, state['router_state']),
                step=state['step'] + 1, key=state['key'], counts=counts), report

  return jax.jit(step, donate_argnums=0, out_shardings=(plan.shardings(), distributed.everywhere(plan.mesh)))


class Watched:
  """A step that also tells how far parameters move, where that is wanted: `groups.update_ratios`.

  The parameters are copied before such a step alone. A step that told the ratios itself would copy them
  always, because a new state is written over the old one.
  """

  def __init__(self, step, plan):
    everywhere = distributed.everywhere(plan.mesh)
    self.step = step
    self.copied = jax.jit(lambda params: jax.tree.map(jnp.copy, plan.trainable(params)))
    self.ratios = jax.jit(lambda before, params: groups.update_ratios(
        plan.kinds, before, plan.trainable(params)), out_shardings=everywhere)

  def __call__(self, state, batch, told: bool):
    """Returns (state, report) of the step; `told`: with the ratios in the report."""
    before = self.copied(state['params']) if told else None
    state, report = self.step(state, batch)
    return state, report | (self.ratios(before, state['params']) if told else {})


def schedule(cfg, total_steps):
  """Returns the function step -> learning rate of a configuration for a training of `total_steps`."""
  return schedules.of(cfg.schedule, total_steps)


def gradients(cfg, plan, state, batch, microbatches):
  """Returns (grads, report, aux) of the whole batch, computed in `microbatches` parts.

  A target of several passes runs the batch once per pass, with different keys. The losses of the routers of
  all passes count.

  grads: of the parameters that train. report: the losses by their names in metrics.jsonl; of several passes
  the means, but for loss/total and for what the target says otherwise. aux: dict layer -> Aux of the whole
  batch, of passes as of microbatches: loads of all passes add up, and so do statistics that are sums.
  """
  key = jax.random.fold_in(state['key'], state['step'])
  differentiate = jax.grad(_loss(cfg, plan, state, batch, microbatches), has_aux=True)
  trained = plan.trainable(state['params'])
  if microbatches == 1:
    grads, (report, aux) = differentiate(trained, batch, key, state['router_state'])
    return grads, report, aux

  def of_part(carry, part):
    (grads, routers), (index, part) = carry, part
    part_grads, out = differentiate(trained, part, jax.random.fold_in(key, index), routers)
    routers = committed(plan, state['params'], routers, out[1], 'accumulate')
    return (jax.tree.map(jnp.add, grads, part_grads), routers), out

  first = jax.tree.map(jnp.zeros_like, trained), state['router_state']
  parts = jnp.arange(microbatches), split(batch, microbatches)
  (grads, _), (report, aux) = jax.lax.scan(of_part, first, parts)
  return grads, jax.tree.map(lambda x: jnp.sum(x, 0), report), {n: routing.merge(a) for n, a in aux.items()}


def _loss(cfg, plan, state, batch, microbatches):
  """The function (parameters that train, a part of `batch`, key, router state) -> (loss, (report, aux))."""
  model = plan.model(state['params'], state['router_state'])
  target = targets.at(plan.target, state['step'])
  counts = targets.counts(target, model, batch)
  tokens = jax.tree.map(lambda n: n / microbatches, model.count_tokens(batch))
  weighted = cfg.losses.to_dict()

  def forward(params, part, key, routers):
    """What the target judges [B,...] of the pass, or [P,B,...] of several, and their Aux."""
    model = plan.model(groups.put(state['params'], params), routers)
    once = lambda key: targets.predict(target, model, part, key=key, train=True, step=state['step'],
                                       tokens=tokens)
    if target.passes == 1:
      return once(key)
    outputs, aux = jax.lax.map(once, jax.random.split(key, target.passes))
    return outputs, {layer: routing.merge(a) for layer, a in aux.items()}

  def loss(params, part, key, routers):
    outputs, aux = forward(params, part, key, routers)
    with jax.named_scope('loss'):
      task, report = targets.loss(target, outputs, part, counts)
      of_routers, values = losses.router(aux, weighted)
    total = task + target.passes * of_routers / microbatches
    # Summed over microbatches, these are the values of the whole batch.
    report |= {losses.METRIC.get(n, f'loss/aux_{n}'): v / microbatches for n, v in values.items()}
    return total, (report | {'loss/total': total}, aux)
  return loss


def split(batch, microbatches):
  """Returns [B,...] arrays as [M,B/M,...]: each device's rows are cut into M runs, in order.

  No row moves between devices, and rows that are routed in one group stay together.
  """
  shards = axes.num_shards('batch')

  def of_array(x):
    tail = x.shape[1:]
    x = x.reshape(shards, microbatches, -1, *tail).swapaxes(0, 1)    # [M, shards, B/(M*shards), ...]
    return axes.constrain(x.reshape(microbatches, -1, *tail), None, 'batch', *[None] * len(tail))
  return jax.tree.map(of_array, batch)


def committed(plan, params, routers, aux, offer='commit'):
  """Returns the routers' state after this step; routers see the load of the whole batch, once.

  With `offer` 'accumulate' the function returns the state for the step's next microbatch. The step drops it.
  """
  if not jax.tree.leaves(routers):
    return routers
  model = plan.model(params, routers)
  router_state.commit(model, aux, offer)
  return nnx.to_pure_dict(nnx.state(model, router_state.RouterState))


def describe(aux):
  """Returns dict layer -> dict metric -> f32[]: what the layer reports and what its load says."""
  return {layer: dict(a.metrics, load_entropy=routing.load_entropy(a.load),
                      max_load_ratio=routing.max_load_ratio(a.load), max_vio=routing.max_vio(a.load),
                      dead_experts=routing.dead_experts(a.load))
          for layer, a in aux.items()}


def count(counts, weights, finite):
  """Returns the counters after a step on a batch with target weights `weights` f32[...]."""
  new_tokens = jnp.sum(weights > 0, dtype=jnp.uint32)
  low, high = counts['tokens']
  low = low + new_tokens
  skipped = (~finite).astype(jnp.int32)
  return dict(tokens=jnp.stack([low, high + (low < new_tokens)]), skipped=counts['skipped'] + skipped,
              bad=(counts['bad'] + 1) * skipped)
