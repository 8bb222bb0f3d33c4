"""FactorLLM: a trained feed-forward network in chunks, chosen by which of them come nearest to the whole.

(arXiv:2408.11855; the number is unverified). Tokens pass k of N chunks of hidden units, without weights. The
router learns from a teacher, the network before it was cut: the prior-approximate loss.
"""

import itertools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.transport import layouts
from stmoe.errors import UserError
from stmoe.experts import glu
from stmoe.experts import mlp
from stmoe.layers import dense
from stmoe.layers import moe
from stmoe.parts.around import factor_llm as around

CLIP = 1e-7


def apart(chunks: jax.Array, target: jax.Array) -> jax.Array:
  """Returns f32[...,N], the mean over D of (chunk - target)^2 of chunks [N,...,D] and a target [...,D]."""
  return jnp.moveaxis(jnp.mean(jnp.square(chunks - target), axis=-1), 0, -1)


def nearest(chunks: jax.Array, whole: jax.Array, k: int) -> jax.Array:
  """Returns f32[...,N], 1 at the k chunks whose outputs are nearest to k / N of the whole, each by itself.

  Args:
    chunks: [N,...,D] outputs of the chunks; whole: [...,D] output of the network.
  Differs: N / k is the whole number N // k, as in the code.
  """
  away = apart(chunks, whole / (len(chunks) // k))                   # [..., N]
  return hard(jax.nn.softmax(-away, axis=-1), k)


def subset(chunks: jax.Array, whole: jax.Array, k: int) -> jax.Array:
  """Returns f32[...,N], 1 at the k chunks whose sum is nearest to the whole; see `nearest`.

  Of equal sums the first in the order of `itertools.combinations`.
  """
  sets = jnp.array([[float(e in members) for e in range(len(chunks))]
                    for members in itertools.combinations(range(len(chunks)), k)])           # [M, N]
  sums = jnp.einsum('mn,n...d->m...d', sets, chunks, precision='highest')
  return sets[jnp.argmin(apart(sums, whole), axis=-1)]


LABELS: dict[str, typing.Callable[..., jax.Array]] = {'nearest': nearest, 'subset': subset}


def hard(probs: jax.Array, k: int) -> jax.Array:
  """Returns f32[...,N], 1 at the k largest entries of probs [...,N], the first of equal ones."""
  return jax.nn.one_hot(choices.top(probs, k), probs.shape[-1]).sum(axis=-2)


def prior_loss(logits: jax.Array, label: jax.Array, clip: float = CLIP) -> jax.Array:
  """Returns f32[...], KL(softmax(logits) || softmax(label)): the router comes first (prior-approximate loss).

  The softmax of k ones among N is e / (k e + N - k) on them and 1 / (k e + N - k) elsewhere.

  Args:
    logits: f32[...,N] of the router; label: f32[...,N] of 0 and 1.
    clip:   probabilities are no nearer than this to 0 and 1.
  """
  p, q = (jnp.clip(jax.nn.softmax(x, axis=-1), clip, 1 - clip) for x in (logits, label))
  return jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1)


def balance_loss(logits: jax.Array, k: int) -> jax.Array:
  """Returns f32[...], 1 / N of the probability of the k chosen chunks, for logits f32[...,N]."""
  probs = jax.nn.softmax(logits, axis=-1)
  return jnp.mean(hard(probs, k) * probs, axis=-1)


class Chunks(nnx.Module):
  """The router of a `FactorLLM`: x w + b, the k largest, each with weight N // k. No gradient passes it."""

  def __init__(self, d_model: int, num_experts: int, k: int, trains: bool, *, rngs):
    choices.check_k('of layer factor_llm', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.needs_loss = ('prior',) if trains else ()

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,N] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,N]; see `contract.OFFERS`."""
    probs = jax.nn.softmax(logits, axis=-1)
    choice = (choose or choices.top)(probs, self.k)                  # [G, S, k]
    weight = jnp.full(choice.shape, float(self.num_experts // self.k))
    edges = assignment.kill_padding(assignment.from_choices(choice, weight, self.num_experts), ctx.mask)
    a = assignment.cap(edges, edges.num_tokens)
    aux = contract.Aux(losses={}, load=metrics.load(edges),
                       metrics=metrics.routing(logits, probs, edges, a, ctx.mask, ctx.tokens))
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)


class FactorLLM(nnx.Module):
  """(N // k) sum over the k chosen chunks of act(x wi) wo, or of (act(x wi) * x wg) wo if gated.

  `stmoe factorise RUN factor_llm` makes such layers of dense ones; they compute the same if k = N.

  Args:
    d_model, d_ff: D, and F of all chunks together.
    num_experts: N.
    k:      chunks of a token; None = N / 2.
    prior:  whose input the teacher's network and the chunks are compared on. 'teacher' is that of the dense
      model, whose states `parts/around/factor_llm.py` brings, in training. 'own' is the layer's. 'none':
      there is no teacher any more, and no loss.
    wanted: the chunks that a token should have: each 'nearest' by itself, or the 'subset' with the nearest
      sum.
    activation, gated, use_bias, limit, dropout_rate, init_scale: of the network, see `dense.Dense`.
    executor, group_size: see `moe.Moe`.
  Losses: prior, balance; the paper's coefficients are 0.05 and 0.01, summed over layers.
  Differs: the released code's teacher gets the output of the dense layer below, its loss is of one row.
    Neither is built. Biases of the output are cut, too.
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count, num_experts: ranges.Count = 4,
               k: ranges.Count | None = None, prior: ranges.Choice('teacher', 'own', 'none') = 'teacher',
               wanted: ranges.Choice(*LABELS) = 'nearest', activation: ranges.Activation = 'silu',
               gated: ranges.Flag = True, use_bias: ranges.Flag = False, limit: ranges.Positive | None = None,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None, rngs):
    if d_ff % num_experts:
      raise UserError(f'layer factor_llm: num_experts={num_experts} chunks of d_ff={d_ff}; nearest: d_ff='
                      f'{max(d_ff // num_experts, 1) * num_experts}')
    if gated and use_bias:
      raise UserError('layer factor_llm: use_bias=True is of networks that are not gated; nearest: False')
    same = dict(activation=activation, dropout_rate=dropout_rate, init_scale=init_scale, rngs=rngs)
    chunk = dict(same, num_experts=num_experts, d_ff=d_ff // num_experts)
    self.experts = glu.Glu(d_model, **chunk, limit=limit) if gated else mlp.Mlp(
        d_model, **chunk, use_bias=use_bias)
    self.router = Chunks(d_model, num_experts, k or max(num_experts // 2, 1), prior != 'none', rngs=rngs)
    self.teacher = None if prior == 'none' else dense.Dense(
        d_model, d_ff=d_ff, gated=gated, use_bias=use_bias, limit=limit, **same)
    self.d_model = d_model
    self.prior = prior
    self.wanted = wanted
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the teacher's states at the bottom, x [B,T,D]."""
    return {around.STREAM: x} if self.prior == 'teacher' else {}

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    if isinstance(ctx.visible, around.Teacher) and self.teacher is not None:
      whole, prior = self._judged(x, ctx)
      return whole, contract.Aux(losses=prior, load=jnp.zeros(self.router.num_experts), metrics={}), carry
    batch, length, _ = x.shape
    groups, size, execute = moe.grouping(self, ctx, batch, length)
    grouped = axes.constrain(x.reshape(groups, size, -1), 'group', None, None)       # [G, S, D]
    with jax.named_scope('route'):
      routed = checked.route(self.router, grouped, ctx.fold('router').group(groups, size), {})
    y = execute(grouped, routed.assignment, self.experts, ctx.fold('experts').key if ctx.train else None)
    y = axes.constrain(y.reshape(batch, length, -1), 'batch', 'length', None)        # [B, T, D]
    prior = self._judged(x, ctx)[1] if self.prior == 'own' and ctx.train else {}
    return y, routed.aux.replace(losses=prior), carry

  def _judged(self, x, ctx):
    """(y* [B,T,D] of the teacher's network, dict of losses) for x [B,T,D]; only the router has a gradient."""
    x = jax.lax.stop_gradient(x)
    with jax.named_scope('prior'):
      whole, _, _ = self.teacher(x, ctx.replace(train=False), {})
      number, k = self.router.num_experts, self.router.k
      rows = jnp.broadcast_to(x.reshape(-1, x.shape[-1]), (number, x.shape[0] * x.shape[1], x.shape[-1]))
      chunks = self.experts(layouts.Buckets(rows)).x.reshape(number, *whole.shape)   # [N, B, T, D]
      label = LABELS[self.wanted](*(jax.lax.stop_gradient(y.astype(jnp.float32)) for y in (chunks, whole)), k)
      logits = self.router.logits(x, ctx)
      each = dict(prior=prior_loss(logits, label), balance=balance_loss(logits, k))
    return whole, {name: losses.token_mean(loss, ctx.mask, ctx.tokens) for name, loss in each.items()}
