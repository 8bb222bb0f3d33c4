"""Mixture-of-Depths: a block that some tokens of a sequence pass, and others go by (arXiv:2404.02258)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import losses
from stmoe.parts import block as block_lib
from stmoe.parts import cache as caches

PASSED = 'passed'                    # the name of its own cache: who has passed is there to be seen
GATES: dict[str, typing.Callable[[jax.Array], jax.Array]] = {'raw': lambda r: r, 'sigmoid': jax.nn.sigmoid}


def scores(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns r [B,T], r_t = w . x_t, for x [B,T,D] and w [D,1]; at least float32."""
  return jnp.matmul(x.astype(jnp.promote_types(x.dtype, jnp.float32)), w, precision='highest')[..., 0]


def part(share: float, tokens: int) -> int:
  """Returns how many of so many tokens pass: their share, at least one; none of none.

  >>> part(0.125, 16), part(0.125, 4), part(0.125, 0)
  (2, 1, 0)
  """
  return max(round(share * tokens), 1) if tokens else 0


def largest(r: jax.Array, mask: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
  """Returns (places i32[B,C], live bool[B,C]): the `share` of each row that is largest, in order.

  Of equal entries of r [B,T] the first. C is the part of T. A row with fewer real tokens, mask bool[B,T], has
  the part of these: its other places are not live. So padding changes nothing.

  >>> at, live = largest(jnp.array([[1.0, 3.0, 2.0, 0.0]]), jnp.array([[True, True, True, True]]), 0.5)
  >>> at.tolist(), live.tolist()
  ([[1, 2]], [[True, True]])
  """
  r = jnp.where(mask, jax.lax.stop_gradient(r), -jnp.inf)
  parts = np.array([part(share, tokens) for tokens in range(r.shape[1] + 1)], np.int32)
  at = jax.lax.top_k(r, int(parts[-1]))[1]                           # [B, C], falling
  live = jnp.arange(parts[-1]) < jnp.asarray(parts)[mask.sum(axis=1)][:, None]
  order = jnp.argsort(at, axis=1)
  return jnp.take_along_axis(at, order, axis=1), jnp.take_along_axis(live, order, axis=1)


def membership_loss(r: jax.Array, selected: jax.Array, mask: jax.Array,
                    tokens: jax.Array | None = None) -> jax.Array:
  """Returns f[], the mean binary cross entropy of logits r [B,T] for selected bool[B,T] over real tokens."""
  each = jax.nn.softplus(r) - jnp.where(selected, r, 0)              # -log sigmoid(+-r)
  return losses.token_mean(each, mask, tokens)


def mixed(x: jax.Array, y: jax.Array, gate: jax.Array) -> jax.Array:
  """Returns x + gate (y - x) for x and y = block(x) [B,T,D]; gate [B,T] is 0 where a token goes by."""
  return x + (gate[..., None] * (y - x)).astype(x.dtype)


class MixtureOfDepths(block_lib.Around):
  """A block that the C tokens of largest r = w . x of a row pass: y = x + r (block(x) - x), others y = x.

  They attend to each other at the places they have. The top C of a row look ahead, which an encoder may. A
  causal stack selects by a threshold wherever it does not train: a token passes if the logit of the
  predictor, or r itself, is above 0. All tokens are then computed, and keys of tokens that went by are not
  seen.

  Args:
    block:  recipe of the block.
    share:  C / T, the part of a row's tokens that passes in training (paper: 0.125).
    gate:   'raw': r multiplies what the block adds, as in the paper; 'sigmoid': sigmoid(r) does.
    select: what decides without looking ahead: the 'predictor', linear on x without gradient to it, or the
      'router', whose r needs the loss `membership` for it.
  Losses: predictor, membership (changes r); weigh the one that `select` needs, the other is a number to see.
  Differs: what released ports do otherwise, r times all of block(x) and a strict threshold at the C-th token
    that leaves C - 1, is not built. Of packed rows the C tokens are those of a row, not of each sequence.
  """

  def __init__(self, d_model: int, *, block, share: ranges.PartOf1 = 0.125,
               gate: ranges.Choice(*GATES) = 'raw',
               select: ranges.Choice('predictor', 'router') = 'predictor', rngs):
    self.block = block(d_model, rngs=rngs)
    self.block.share_of_rows = share
    init = nnx.initializers.normal(0.02)
    vector = lambda: axes.param(init, (d_model, 1), 'embed', 'unmodeled', label='router', rngs=rngs)
    self.router_w = vector()
    self.router_predictor = vector() if select == 'predictor' else None
    self.needs_loss = ('predictor' if select == 'predictor' else 'membership',)
    self.share = share
    self.gate = gate

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict:
    """Returns the empty caches of the block, and who has passed: {'who': bool[B,K]}."""
    return super().init_cache(batch, length, dtype) | {PASSED: dict(who=jnp.zeros((batch, length), bool))}

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    with jax.named_scope('depth'):
      r = scores(x, self.router_w[...])                              # [B, T]
    if ctx.causal and not ctx.train:
      return self._threshold(x, r, (self._logits(x, r) > 0) & ctx.mask, ctx, carry)
    return self._largest(x, r, ctx, carry)

  def _logits(self, x, r):
    """[B,T], above 0 where a token passes without a look at later ones."""
    if self.router_predictor is None:
      return r
    return scores(jax.lax.stop_gradient(x), self.router_predictor[...])

  def _places(self, r, mask):
    """`largest` of the C tokens of a row that pass in training."""
    return largest(r, mask, self.share)

  def _largest(self, x, r, ctx, carry):
    """C tokens of every row pass, which are computed alone."""
    at, live = self._places(r, ctx.mask)                             # [B, C]
    rows = jnp.arange(len(r))[:, None]
    take = lambda a: a[rows, at]                                     # [B, T, ...] -> [B, C, ...]
    # C / T is not the share, and changes with padding: C is a whole number.
    inside = ctx.each(take).replace(tokens=ctx.tokens * self.share,
                                    visible=_taken(ctx.visible, rows, at, live))
    inside = inside.replace(mask=inside.mask & live)
    y, reports, after = self.block(take(x), inside, jax.tree.map(take, carry))
    gate = jnp.where(live, GATES[self.gate](take(r)), 0)
    aux = self._report(x, r, None, ctx)
    x = x.at[rows, at].set(mixed(take(x), y, gate), unique_indices=True)
    kept = jax.tree.map(lambda old, new: jnp.where(_wide(live, new), new, take(old)), carry, after)
    carry = jax.tree.map(lambda old, new: old.at[rows, at].set(new, unique_indices=True), carry, kept)
    return x, reports | {'.depth': aux}, carry

  def _threshold(self, x, r, passed, ctx, carry):
    """Who has passed is seen by who passes; all tokens are computed."""
    carry, own = contract.apart(carry)
    seen, cached = ctx.visible['attention'] if 'attention' in (ctx.visible or {}) else None, own is not None
    who, given = passed, own
    if cached:
      given = {name: cache for name, cache in own.items() if name != PASSED}
      who = caches.extended(own[PASSED], dict(who=passed), seen.slot)['who']       # [B, K]
    visible = ctx.visible
    if seen is not None:
      visible = visible | dict(attention=seen.masked(lambda mask: mask & who[:, None, None, :]))
    number = jnp.maximum(jnp.sum(passed, dtype=jnp.float32), 1)
    inside = ctx.replace(mask=passed, visible=visible, tokens=number)
    y, reports, after = self.block(x, inside, contract.joined(carry, given))
    after, caches_after = contract.apart(after)
    kept = jax.tree.map(lambda old, new: jnp.where(_wide(passed, new), new, old), carry, after)
    if cached:
      kept = contract.joined(kept, caches_after | {PASSED: dict(who=who)})
    aux = self._report(x, r, passed, ctx)
    x = jnp.where(passed[..., None], mixed(x, y, GATES[self.gate](r)), x)
    return x, reports | {'.depth': aux}, kept

  def _report(self, x, r, passed, ctx):
    """The Aux of the choice; None: those that `_places` says have passed. Its load is (through, by).

    What the logits are compared with is who would pass in training, also where a threshold decides.
    """
    mask, logits = ctx.mask, dict(membership=r)
    at, live = self._places(r, mask)
    wanted = jnp.zeros(r.shape, bool).at[jnp.arange(len(r))[:, None], at].set(live, unique_indices=True)
    passed = wanted if passed is None else passed
    logits |= {} if self.router_predictor is None else dict(predictor=self._logits(x, r))
    fixed = lambda values: jax.lax.stop_gradient(values).astype(jnp.float32)
    mean = lambda values: losses.token_mean(fixed(values), mask, ctx.tokens)
    through = jnp.sum(passed & mask, dtype=jnp.float32)
    accuracy = {f'{name}_accuracy': mean((logit > 0) == wanted) for name, logit in logits.items()}
    return contract.Aux(
        losses={name: membership_loss(logit, wanted, mask, ctx.tokens) for name, logit in logits.items()},
        load=jnp.stack([through, jnp.sum(mask, dtype=jnp.float32) - through]),
        metrics=dict(accuracy, passed_share=mean(passed),
                     gate_mean=mean(jnp.where(passed, GATES[self.gate](r), 0))))


def _taken(visible, rows, at, live):
  """What the sub-layers of a block see, dict name -> Visible, of the live ones of the tokens at i32[B,C]."""
  def one(name, seen):
    own = name == 'attention'                                        # its keys are of the same tokens
    def pick(a):                                                     # [B or 1, H, T, K] -> [B, H, C, C or K]
      a = jnp.broadcast_to(a, (len(at), *a.shape[1:]))
      a = jnp.moveaxis(a, 2, 1)[rows, at].swapaxes(1, 2)
      return jnp.moveaxis(a, 3, 1)[rows, at].transpose(0, 2, 3, 1) if own else a
    turn = seen.turn and tuple(a[rows, at] for a in seen.turn)
    seen = seen.masked(pick)
    seen = seen.masked(lambda mask: mask & live[:, None, None]) if own else seen
    return seen.replace(bias=None if seen.bias is None else pick(seen.bias), turn=turn)
  return None if visible is None else {name: one(name, seen) for name, seen in visible.items()}


def _wide(passed, like):
  """bool[B,T] with as many axes as `like` [B,T,...]."""
  return passed.reshape(*passed.shape, *[1] * (like.ndim - 2))
