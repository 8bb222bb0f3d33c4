"""Several gates over several banks of experts: what mixtures for many tasks have in common.

All experts of a level run on every row; a gate weighs those that it sees. There is no dispatch.
"""

import typing
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core.units import activations
from stmoe.errors import UserError

NEAR_ZERO = 1e-6                         # an output of an expert below it counts as zero


class Sees(NamedTuple):
  """What a gate sees: names of banks, in the order of its weights; the bank of its self-gate, or ''."""
  banks: tuple[str, ...]
  own: str = ''


def weights(logits: jax.Array, top: int | None = None) -> jax.Array:
  """Returns f[B,E], the softmax of logits f[B,E]; with `top` over the `top` largest, the others get 0.

  >>> weights(jnp.array([[1.0, 3.0, 3.0]]), top=2).tolist()
  [[0.0, 0.5, 0.5]]
  """
  if top is None:
    return jax.nn.softmax(logits)
  _, kept = jax.lax.top_k(logits, top)                               # [B, top]
  seen = jnp.any(jax.nn.one_hot(kept, logits.shape[-1], dtype=bool), axis=-2)
  return jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))


class Gate(nnx.Module):
  """The weights of n experts for every row: softmax(W v), no bias; W [D,n]. A single expert weighs 1.

  alone: whether a single expert has a gate, too, sigmoid(W v) (the self-gate of HoME).
  """

  label = 'router'

  def __init__(self, width: int, num_experts: int, *, top=None, alone=False, rngs):
    made = num_experts > 1 or alone
    init = nnx.initializers.lecun_normal()
    self.w = axes.param(init, (width, num_experts), 'embed', 'unmodeled', rngs=rngs) if made else None
    self.top = top
    if top is not None and top > num_experts:
      raise UserError(f'model.mixer.top={top}: a gate sees {num_experts} experts; nearest: {num_experts}')

  def __call__(self, v: jax.Array) -> jax.Array:
    """Returns f[B,n] for v [B,D]."""
    if self.w is None:
      return jnp.ones((len(v), 1), v.dtype)
    logits = v @ self.w[...]                                         # [B, n]
    return jax.nn.sigmoid(logits) if logits.shape[1] == 1 else weights(logits, self.top)


class Experts(nnx.Module):
  """E networks of one form, each with an input of its own: x [B,E,D] -> [B,E,H].

  Args:
    width, widths: D, and the widths of the layers, of which the last is H.
    activation:    after every layer.
    norm:          a recipe of what stands before the activation of the last layer, or None.
  """

  def __init__(self, width: int, widths: tuple[int, ...], *, num_experts, activation='relu', norm=None, rngs):
    init = nnx.initializers.lecun_normal(batch_axis=(0,))
    pairs = list(zip((width, *widths), widths))
    self.w = nnx.List([axes.param(init, (num_experts, *pair), 'expert', 'embed', 'mlp', rngs=rngs)
                       for pair in pairs])
    self.b = nnx.List([axes.param(nnx.initializers.zeros, (num_experts, out), 'expert', 'mlp', rngs=rngs)
                       for _, out in pairs])
    self.norm = None if norm is None else norm((num_experts, widths[-1]), ('expert', 'mlp'), rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns ([B,E,H], dict of the Statistics of the norm) for x [B,E,D]."""
    act, statistics = activations.named(self.activation), {}
    for place, (w, b) in enumerate(zip(self.w, self.b), 1):
      x = jnp.einsum('bed,edh->beh', x, w[...]) + b[...]
      if place == len(self.w) and self.norm is not None:
        x, statistics = self.norm(x, ctx.train, ctx.mask[:, 0])
      x = act(x)
    return x, statistics


class Level(nnx.Module):
  """Banks of experts, and gates that mix what they see of them.

  Args:
    width:  D, of the inputs of experts.
    widths: of the layers of an expert, the last is H.
    banks:  dict name -> number of experts.
    sees:   dict name of a gate -> Sees.
    gated:  width of what gates read.
    top:    of a gate, see `weights`.
    experts: more fields of `Experts`.
  """

  def __init__(self, width: int, widths: tuple[int, ...], banks: dict[str, int], sees: dict[str, Sees],
               gated: int, *, top=None, experts=None, rngs):
    self.banks = tuple(banks.items())
    self.sees = tuple(sees.items())
    self.experts = Experts(width, widths, num_experts=sum(banks.values()), rngs=rngs, **experts or {})
    num = lambda names: sum(banks[name] for name in names)
    self.gates: nnx.Dict = nnx.Dict(
        {name: Gate(gated, num(seen.banks), top=top, rngs=rngs) for name, seen in sees.items()})
    self.own: nnx.Dict = nnx.Dict({name: Gate(gated, banks[seen.own], alone=True, rngs=rngs)
                                   for name, seen in sees.items() if seen.own})

  def __call__(self, inputs: dict, read: dict, ctx: contract.Context) -> tuple[dict, dict]:
    """Returns (dict gate -> [B,H], dict '' or '.GATE' -> Aux).

    The load of a gate are the sums of its weights f32[E] over the rows, 0 for experts that it does not see.
    The load of the level is that of all gates. Metric zero_share is the share of outputs that are zero.

    Args:
      inputs: dict bank -> [B,D], what its experts read.
      read:   dict gate -> [B,D'], what the gate reads.
      ctx:    Context of the rows, [B,1].
    """
    x = jnp.concatenate([jnp.repeat(inputs[name][:, None], n, axis=1) for name, n in self.banks], axis=1)
    y, statistics = self.experts(x, ctx)                             # [B, E, H] of x [B, E, D]
    mixed, aux = {}, {}
    for name, seen in self.sees:
      with jax.named_scope('route'):
        share = self._spread(seen.banks, self.gates[name](read[name]))               # [B, E]
        if seen.own:
          share += self._spread((seen.own,), self.own[name](read[name]))
      mixed[name] = jnp.einsum('be,beh->bh', share, y)
      aux[f'.{name}'] = contract.Aux(losses={}, metrics={}, load=jnp.sum(
          jax.lax.stop_gradient(share) * ctx.mask, axis=0, dtype=jnp.float32))
    zero = jnp.mean(jnp.abs(jax.lax.stop_gradient(y)) < NEAR_ZERO, axis=(1, 2), dtype=jnp.float32)   # [B]
    metrics = dict(zero_share=losses.token_mean(zero[:, None], ctx.mask, ctx.tokens))
    load = jnp.sum(jnp.stack([each.load for each in aux.values()]), axis=0)          # [E]
    return mixed, {'': contract.Aux(losses={}, load=load, metrics=metrics, statistics=statistics)} | aux

  def _spread(self, banks, share):
    """[B,E] of weights [B,n] of the experts of some banks, 0 elsewhere."""
    first = dict(zip([name for name, _ in self.banks], np.cumsum([0] + [n for _, n in self.banks])))
    sizes = dict(self.banks)
    at = np.concatenate([first[name] + np.arange(sizes[name]) for name in banks])
    return jnp.zeros((len(share), sum(sizes.values())), share.dtype).at[:, at].set(share)


class Levels(nnx.Module):
  """A stack of levels, which are its layers: what a model asks of a stack.

  A mixer sets `levels`, an nnx.List.
  """

  name = 'level'
  levels: typing.Any

  def names(self) -> list[str]:
    """Returns the names of the levels, in their order."""
    return [f'{self.name}_{index}' for index in range(len(self.levels))]

  def reported(self, reports: list[dict]) -> dict:
    """Returns dict layer name -> Aux from what the levels reported."""
    return {f'{name}{end}': aux for name, report in zip(self.names(), reports) for end, aux in report.items()}

  def by_name(self) -> dict:
    """Returns dict name -> level."""
    return dict(zip(self.names(), self.levels))

  def blocks(self) -> list[str]:
    """Returns the names of the blocks whose states may be seen: there are none."""
    return []

  def commit(self, aux: dict, offer: str = 'commit') -> None:
    """Lets levels with state across steps update it from `aux` (see `stmoe.router_state`)."""
    for name, level in self.by_name().items():
      modules.commit(level, aux[name], offer)

  def states(self) -> dict:
    """Returns dict level name -> dict dotted path -> its RouterState."""
    flat = lambda level: nnx.to_flat_state(nnx.state(level, state.RouterState))
    return {name: {'.'.join(map(str, path)): value[...] for path, value in flat(level)}
            for name, level in self.by_name().items()}
