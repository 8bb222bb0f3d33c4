"""Checks of BASE layers (fairseq) and of Sinkhorn balancing (Megatron-LM)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import contract
from stmoe.core import matching
from stmoe.core.execute import gather
from stmoe.layers import moe
from stmoe.layers import shuffled
from stmoe.routers import base
from stmoe.routers import s_base

auction = jax.jit(matching.auction)
deal = jax.jit(shuffled.deal)


@functools.partial(jax.jit, static_argnames=('k', 'tolerance'))
def balance(logits, k, tolerance):
  """(plan, converged plan) f32[T,E], and the assignments of training and of evaluation, of one group."""
  logits = logits[None]
  real, size = jnp.ones(logits.shape[:2], bool), logits.shape[1]
  plans = [matching.sinkhorn(logits, tolerance=t, iterations=20000)[0] for t in (tolerance, 0.0)]
  return *plans, *(s_base.s_base(logits, real, size, k, balanced=b)[0] for b in (True, False))


@jax.jit
def evaluate(module, x, ctx):
  """The block's output [B,T,D]: theirs has the residual connection inside, ours is around the layer."""
  return x + module(x, ctx, {})[0]


@jax.jit
def differentiate(module, x, order, expert, seed):
  """Gradients to (module, x [W*N,D]), affinities [W,N,E], and the output [W*N,D], for given experts [W,N].

  `order` is the shuffle, and `expert` is of the shuffled tokens.
  """
  def loss(module, x):
    mixed = x[order].reshape(*expert.shape, -1)                      # [W, N, D]
    affinities = jnp.einsum('gsd,de->gse', mixed, module.router.w[...], precision='highest')
    capacity = expert.shape[1] // affinities.shape[-1]
    a, _ = base.base(affinities, jnp.ones(expert.shape, bool), expert, capacity)
    y = x + gather.execute(mixed, a, module.experts).reshape(x.shape)[jnp.argsort(order)]
    return jnp.sum(y * seed), (affinities, y)
  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(module, x)


def _total(scores, expert):
  return float(scores[np.arange(len(scores)), expert].astype(np.float64).sum())


def balanced_assignment(case):
  scores = case['scores']
  size, experts = scores.shape
  chosen = np.asarray(auction(scores[None]))[0]
  np.testing.assert_array_equal(np.bincount(chosen, minlength=experts), size // experts)
  exact, total = float(case['exact_total_score']), _total(scores, chosen)
  np.testing.assert_allclose(_total(scores, case['exact_expert_of_token']), exact, rtol=1e-5, atol=1e-5)
  epsilon = max(float(scores.max() - scores.min()) / 50, 1e-4)
  assert total <= exact + 1e-4 * abs(exact) and total >= exact - size * epsilon
  if not case.config.get('reference_valid', True):
    assert len(set(case['ref_sort_by_expert'].tolist())) < size      # tokens are missing
    return
  theirs = np.empty(size, int)
  theirs[case['ref_sort_by_expert']] = np.repeat(np.arange(experts), size // experts)
  case.assert_close('ref_expert_of_token', theirs)
  reference = float(case['ref_total_score'])
  np.testing.assert_allclose(_total(scores, theirs), reference, rtol=1e-5)
  if len(np.unique(scores)) == scores.size:
    assert total >= reference - 1e-3 * abs(reference)
  case.assert_close('greedy_expert_of_token', scores.argmax(axis=1))


def sinkhorn(case):
  k, (size, experts) = case.config['k'], case['logits'].shape
  plan, exact, *assignments = balance(case['logits'], k, case.config['tol'])
  plan, exact = np.asarray(plan), np.asarray(exact)
  np.testing.assert_allclose(plan, case['ref_plan'], rtol=1e-3)      # as the case states in words
  np.testing.assert_allclose(plan.sum(axis=0), 1 / experts, rtol=1e-5)
  np.testing.assert_allclose(size * exact, case['exact_plan'], rtol=1e-4)
  chosen, greedy = (np.asarray(a.expert)[0].reshape(k, size).T for a in assignments)      # [T, k] twice
  train, evaluation = (np.zeros((size, experts), np.float32) for _ in assignments)
  for gates, a in zip((train, evaluation), assignments):
    gates[np.asarray(a.token[0]), np.asarray(a.expert[0])] = a.weight[0]
  if np.ptp(case['logits']) == 0:                                    # ties: only the gates are to be compared
    for name in ('ref_train_topk', 'ref_eval_topk', 'exact_argmax', 'load_sinkhorn', 'load_greedy'):
      case.ignore(name, 'all logits are equal; whom the reference takes is an accident')
    np.testing.assert_allclose(np.sort(train), np.sort(case['ref_train_gates']), atol=1e-6)
    np.testing.assert_allclose(np.sort(evaluation), np.sort(case['ref_eval_gates']), atol=1e-6)
    return
  case.assert_close('ref_train_topk', chosen)
  case.assert_close('ref_eval_topk', greedy)
  np.testing.assert_allclose(train, case['ref_train_gates'], atol=1e-6)
  np.testing.assert_allclose(evaluation, case['ref_eval_gates'], atol=1e-6)
  case.assert_close('exact_argmax', exact.argmax(axis=1))
  case.assert_close('load_sinkhorn', np.bincount(plan.argmax(axis=1), minlength=experts))
  case.assert_close('load_greedy', np.bincount(case['logits'].argmax(axis=1), minlength=experts))


def _module(case):
  """The sparse layer with the recorded parameters; a worker's tokens are a group."""
  config = case.config
  router = dict(name='base', num_experts=config['W'])
  experts = dict(name='residual', d_ff=config['F'], num_sublayers=config['sublayers'])
  module = moe.Moe(config['D'], router=lookup.recipe('router', router), group_size=config['N'],
                   experts=lookup.recipe('experts', experts), rngs=nnx.Rngs(0))
  module.router.w[...] = case['centroids'].T                         # [E, D] -> [D, E]
  for i, sublayer in enumerate(module.experts.sublayers):
    for ours, (theirs, turn) in PARAMETERS.items():
      value = case[f'expert_{theirs}'][:, i]                         # [E, ...]; matrices are [out, in]
      getattr(sublayer, ours)[...] = value.swapaxes(1, 2) if turn else value
  return module


# Our name -> (theirs, whether it is a matrix).
PARAMETERS = dict(scale=('ln_scale', False), bias=('ln_bias', False), wi=('ff1_w', True), bi=('ff1_b', False),
                  wo=('ff2_w', True), bo=('ff2_b', False))


def layer(case):
  module, config, x = _module(case), case.config, case['x']          # x: [W, B, L, D]
  workers, size = config['W'], config['N']
  if not config['train']:
    whole = jnp.asarray(x.reshape(-1, *x.shape[2:]))                 # [W*B, L, D]
    ids = jnp.zeros(whole.shape[:2], jnp.int32)
    ctx = contract.Context(mask=ids == 0, ids=ids, positions=ids, segments=ids + 1, step=jnp.int32(0),
                           tokens=jnp.float32(ids.size))
    expert = np.einsum('wbld,ed->wble', x, case['centroids']).argmax(axis=-1)
    case.assert_close('expert_of_token', expert.reshape(workers, size))
    return case.assert_close('y', evaluate(module, whole, ctx).reshape(x.shape))

  order = np.arange(workers * size)
  if config['shuffle']:
    permuted = case['shuffle_perm'].astype(int) + size * np.arange(workers)[:, None]   # tokens by group
    order = np.asarray(deal(permuted)).reshape(-1)
    unshuffled = case['expert_of_token_local'].reshape(-1)[np.argsort(order)]
    case.assert_close('expert_of_token', unshuffled.reshape(workers, size))
  theirs = np.empty((workers, size), np.int32)
  np.put_along_axis(theirs, case['sort_by_expert'].astype(int),
                    np.repeat(np.arange(workers), size // workers)[None], axis=1)
  case.assert_close('expert_of_token_local', theirs)
  # Our own auction: balanced and, within the bound, as good.
  ours = np.asarray(auction(case['affinities']))
  for scores, mine, reference in zip(case['affinities'], ours, theirs):
    np.testing.assert_array_equal(np.bincount(mine, minlength=workers), size // workers)
    assert _total(scores, mine) >= _total(scores, reference) - size * np.ptp(scores) / 50

  flat = lambda a: a.reshape(-1, config['D'])
  (dmodule, dx), (affinities, y) = differentiate(module, flat(x), order, theirs, flat(case['grad_seed']))
  case.assert_close('affinities', affinities)
  case.assert_close('y', y.reshape(x.shape))
  case.assert_close('dx', dx.reshape(x.shape))
  rtol, atol = case.limits('dcentroids')                             # of each worker; the sum is the gradient
  np.testing.assert_allclose(dmodule.router.w[...].T, case['dcentroids'].sum(axis=0), rtol=rtol, atol=atol)
  for ours, (theirs, turn) in PARAMETERS.items():
    grads = [np.asarray(getattr(sublayer, ours)[...]) for sublayer in dmodule.experts.sublayers]
    case.assert_close(f'dexpert_{theirs}', np.stack([g.swapaxes(1, 2) if turn else g for g in grads], axis=1))
