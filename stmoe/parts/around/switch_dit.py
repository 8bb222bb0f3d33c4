"""Switch-DiT: experts of the noise level modulate what enters a DiT block (arXiv:2403.09176)."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from stmoe import ranges
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.errors import UserError
from stmoe.parts import block as block_lib
from stmoe.parts.around import ada_ln_zero

EMBEDDING = 'time_embedding'             # given of every row, [B,1,D]: of its time
TIME = 'time'                            # given of every row, [B,1]: the time itself
END = '.modulation'                      # of the name that the sparse layer reports under
PROBS, CHOSEN = 'probs', 'chosen'        # names of records that `joint` reads
EPSILON = 1e-6                           # in the logarithms of the prior loss


class Times(typing.NamedTuple):
  """All noise levels of a process: `Context.visible` of a stack has them as `times`.

  time: f32[T] as the network sees them, increasing; embedding: [T,D].
  """
  time: jax.Array
  embedding: jax.Array


def window(units: int, share: float) -> int:
  """Returns w, how many of U units a time uses: the float product of both, cut off (not rounded).

  >>> window(36, 2 / 3), window(10, 0.25)
  (24, 2)
  """
  return int(units * share)


def prior_mask(times: int, units: int, share: float, alpha: float = 4.0) -> np.ndarray:
  """Returns i8[T,U], 1 at the units that a time should use (Denoising Task Routing's mask).

  They are w neighbours from round((t / (T - 1))^alpha (U - w)) on, a half to the even number. Close times
  share units, and small times are closer than large times.

  Args:
    times, units: T and U; share: w / U before rounding.

  >>> prior_mask(2, 4, 0.5).tolist()
  [[1, 1, 0, 0], [0, 0, 1, 1]]
  """
  wide, at = window(units, share), np.arange(times) / max(times - 1, 1)
  start = np.round(at ** alpha * (units - wide))[:, None]            # [T, 1]
  unit = np.arange(units)
  return ((unit >= start) & (unit < start + wide)).astype(np.int8)


def matched(chosen: jax.Array, prior: jax.Array) -> jax.Array:
  """Returns i32[U], for each column of chosen [T,U] that of prior [T,U] with which it is paired.

  The pairing is one to one and differs in the fewest entries in all. The host finds it.

  Args:
    chosen, prior: 0 or 1; no gradient.
  """
  chosen, prior = (jax.lax.stop_gradient(a).astype(jnp.float32) for a in (chosen, prior))
  both = jnp.matmul(chosen.T, prior, precision='highest')            # [U, U]
  # sum_t |q - m| of zeros and ones: whole numbers.
  cost = jnp.sum(chosen, axis=0)[:, None] + jnp.sum(prior, axis=0) - 2 * both
  assign = lambda cost: optimize.linear_sum_assignment(np.asarray(cost))[1].astype(np.int32)
  return jax.pure_callback(assign, jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32), cost)


def nearest(times: jax.Array, time: jax.Array) -> jax.Array:
  """Returns i32[B], the numbers of those of all times f32[T] that times f32[B,1] of rows are."""
  return jnp.argmin(jnp.abs(times - time), axis=-1)


def divergence(p: jax.Array, q: jax.Array) -> jax.Array:
  """Returns f32[...], the Jensen-Shannon divergence in nats of p and q [...,U]; 0 where they are equal."""
  middle = jnp.log((p + q) / 2 + EPSILON)
  part = lambda p: jnp.sum(p * (jnp.log(p + EPSILON) - middle), axis=-1)
  return 0.5 * (part(p) + part(q))


def diffusion_prior(probs: jax.Array, prior: jax.Array, match: jax.Array, gates: jax.Array,
                    priors: jax.Array) -> jax.Array:
  """Returns f32[B], the divergence of the experts that images use from those that they should.

  Args:
    probs:  f32[B,U], the gates' probabilities of all U = L E experts, divided by L.
    prior:  [B,U] of `prior_mask`.
    match:  i32[U] of `matched`, of columns in the orders that follow.
    gates, priors: i32[U], orders of the columns of probs and of prior.
  """
  wanted = prior[:, priors][:, match].astype(jnp.float32)            # [B, U]
  return divergence(probs[:, gates], wanted / jnp.sum(wanted, axis=-1, keepdims=True))


def modulated(block: typing.Callable, x: jax.Array, m: jax.Array) -> tuple:
  """Returns (r + (1 - m) x, ...) where (r, ...) = block(x m), for x and m [B,T,D]."""
  r, *others = block(x * m)
  return r + (1 - m) * x, *others


class SwitchDit(block_lib.Around):
  """A DiT block whose input experts modulate: x' = Block(m x) + (1 - m) x (arXiv:2403.09176).

  m = 1 + what the sparse layer returns for x; its router reads the embedding of the time. With experts that
  are zero at first, the block starts as DiT's.

  Args:
    block: recipe of a block, which stands in `ada_ln_zero`.
    layer: recipe of the sparse layer: `moe` with router `switch_dit` and linear experts.
    alpha: of the prior, see `prior_mask`.
  Losses: diffusion_prior, of all such blocks together: nearby times share experts, and all times some.
  Differs: the orders that break ties follow from the number of the step, the same for all parts of a batch.
    The released code draws them anew on every device.
  """

  def __init__(self, d_model: int, *, block, layer: ranges.Named('layer'), alpha: ranges.Positive = 4.0,
               rngs):
    self.block = ada_ln_zero.AdaLnZero(d_model, block=block, rngs=rngs)
    self.modulation = layer(d_model, rngs=rngs)
    if not hasattr(getattr(self.modulation, 'router', None), 'scores'):
      raise UserError('around switch_dit: its layer needs a router that scores times; nearest: layer=dict('
                      "name='moe', router=dict(name='switch_dit', ...))")
    self.alpha = alpha

  def parts(self) -> dict:
    """Returns dict end of a name -> the part that reports under it."""
    return self.block.parts() | {END: self.modulation}

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    embedding = ctx.known(EMBEDDING, 'around switch_dit')            # [B, 1, D]
    with jax.named_scope('modulation'):
      y, aux, carry = self.modulation.chosen_by(jnp.broadcast_to(embedding, x.shape), x,
                                                ctx.fold('modulation'), carry)
    x, reports, carry = modulated(lambda x: self.block(x, ctx, carry), x, 1 + y)
    return x, reports | {END: aux.recorded(**self._records(embedding, ctx))}, carry

  def _records(self, embedding, ctx):
    """What `joint` needs: probs f32[B,E] of the rows' times and chosen i8[T,E] of all times."""
    times, router = (ctx.visible or {}).get('times'), self.modulation.router
    if times is None or not ctx.train:
      return {}
    all_probs = jax.nn.softmax(router.scores(jax.lax.stop_gradient(times.embedding)[None])[0], axis=-1)
    chosen = jax.nn.one_hot(choices.top(all_probs, router.k), router.num_experts, dtype=jnp.int8)
    return {PROBS: jax.nn.softmax(router.scores(embedding)[:, 0], axis=-1), CHOSEN: jnp.sum(chosen, axis=1)}

  def joint(self, aux: dict, ctx: contract.Context) -> dict:
    """Returns `aux` with the loss diffusion_prior in the first layer that modulates; see `modules.joint`."""
    names = [name for name, one in aux.items() if name.endswith(END) and PROBS in one.records]
    if not names:
      return aux
    joined = lambda key: jnp.concatenate([aux[name].records[key] for name in names], axis=-1)
    probs, chosen, times = joined(PROBS) / len(names), joined(CHOSEN), ctx.visible['times'].time
    units, share = probs.shape[1], self.modulation.router.k / self.modulation.router.num_experts
    mask = jnp.asarray(prior_mask(len(times), units, share, self.alpha))           # [T, U]
    order = jax.random.fold_in(jax.random.key(0), ctx.step)
    gates, priors = (jax.random.permutation(key, units) for key in jax.random.split(order))
    match = matched(chosen[:, gates], mask[:, priors])
    of_rows = mask[nearest(times, ctx.known(TIME, 'around switch_dit'))]
    each = diffusion_prior(probs, of_rows, match, gates, priors)     # [B]
    value = losses.token_mean(each, ctx.mask, ctx.tokens)
    reported = {name: aux[name].without(PROBS, CHOSEN) for name in names}
    first = reported[names[0]]
    return aux | reported | {names[0]: first.replace(losses=first.losses | dict(diffusion_prior=value))}
