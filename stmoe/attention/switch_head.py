"""SwitchHead: few heads, whose values and outputs are mixtures of experts (arXiv:2312.07987)."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import modules
from stmoe import ranges
from stmoe.attention import recall
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import metrics
from stmoe.core import noise
from stmoe.errors import UserError
from stmoe.experts import linear as banks
from stmoe.layers import moe
from stmoe.parts import attend
from stmoe.parts import linear
from stmoe.parts import rotary


class PerHead(nnx.Module):
  """H routers as one: router h chooses among the experts h E to (h + 1) E - 1 for head h of every token.

  Its Aux has the load of the H * E experts and the means over heads of losses and metrics.
  """

  def __init__(self, router: typing.Callable, d_model: int, num_heads: int, rngs):
    @nnx.split_rngs(splits=num_heads)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: 'heads'})
    def make(rngs):
      return checked.built(router, d_model, rngs)
    self.heads = make(rngs)
    if list(modules.offering(self.heads, 'init_carry')):
      raise UserError(f'attention switch_head: {checked.file(self.heads)} remembers something of other '
                      "layers, which have other heads; nearest: router.name='sigma_moe'")
    self.num_heads = num_heads
    self.num_experts = num_heads * self.heads.num_experts
    k = contract.offered(self.heads, 'k')
    self.k = k and num_heads * k
    self.capacity_factor = contract.offered(self.heads, 'capacity_factor')
    self.draws_at_eval = contract.offered(self.heads, 'draws_at_eval')

  def commit(self, aux: contract.Aux) -> None:
    """Lets the router of every head commit its part of the Aux of a whole step, whose load is f32[H*E]."""
    load = aux.load.reshape(self.num_heads, -1)
    modules.commit_each(self.heads, contract.Aux({}, load, {}, aux.statistics))

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]: a token's choice h k + j is choice j of head h."""
    def one(router, key):
      return checked.route(router, x, ctx.replace(key=key), {})
    keys = None if ctx.key is None else jax.random.split(ctx.key, self.num_heads)
    routed = jax.vmap(one, in_axes=(0, None if keys is None else 0))(self.heads, keys)
    a = _side_by_side(routed.assignment, self.heads)
    apart = routed.aux                                               # arrays [H,...]
    aux = metrics.merge(apart).replace(load=apart.load.reshape(-1), statistics=apart.statistics)
    return contract.Routed(a, aux, carry)


def _side_by_side(a, router):
  """The Assignment to H * E experts from the Assignments [H,G,N] of `router`, an Assignment a head."""
  if isinstance(a, assignment.SoftAssignment) or a.choices is None:
    raise UserError(f'attention switch_head: {checked.file(router)} does not choose experts for every token; '
                    "nearest: router.name='sigma_moe'")
  heads, groups, _ = a.expert.shape
  shift = a.num_experts * jnp.arange(heads, dtype=jnp.int32)[:, None, None]
  expert = jnp.where(assignment.live(a), a.expert + shift, heads * a.num_experts)
  join = lambda v: v.swapaxes(0, 1).reshape(groups, -1)              # [H, G, N] -> [G, H*N]
  return assignment.Assignment(
      token=join(a.token), expert=join(expert), weight=join(a.weight), slot=join(a.slot),
      num_tokens=a.num_tokens, num_experts=heads * a.num_experts, choices=heads * a.choices,
      capacity=a.capacity, spare=heads * a.spare)


class Mixture(nnx.Module):
  """A projection of every head that is a mixture of experts [.,d_in] -> [.,d_out], chosen by x [B,T,D]."""

  def __init__(self, d_model: int, d_in: int, d_out: int, *, num_heads, router, executor, group_size,
               init_scale, rngs):
    self.router = PerHead(router, d_model, num_heads, rngs)
    self.experts = banks.Linear(d_in, num_experts=self.router.num_experts, d_ff=d_out, init_scale=init_scale,
                                rngs=rngs)
    self.d_model = d_model
    self.num_heads = num_heads
    self.executor = executor
    self.group_size = group_size
    lookup.executor(executor)

  def __call__(self, rows: jax.Array, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, contract.Aux]:
    """Returns (y [B,T,H,d_out], Aux) for rows [B,T,H,d_in], a row for every head of a token."""
    batch, length, heads, width = rows.shape
    groups = moe.grouped(self, x, ctx, {})
    routed = groups.route(self.router)
    a = of_heads(typing.cast(assignment.Assignment, routed.assignment), heads)
    rows = axes.constrain(rows.reshape(len(groups.x), -1, width), 'group', None, None)     # [G, S*H, d_in]
    y = groups.execute(rows, a, self.experts).reshape(batch, length, heads, -1)      # [B, T, H, d_out]
    return axes.constrain(y, 'batch', 'length', None, None), routed.aux


def of_heads(a: assignment.Assignment, heads: int) -> assignment.Assignment:
  """Returns `a`, an Assignment of S tokens with H k choices, for S * H tokens: (s, h) is s H + h."""
  assert a.choices is not None                                       # `PerHead` chooses for every token
  groups, size, k = a.token.shape[0], a.num_tokens, a.choices // heads
  turn = lambda v: v.reshape(groups, heads, k, size).transpose(0, 2, 3, 1).reshape(groups, -1)
  rows = jnp.tile(jnp.arange(size * heads, dtype=jnp.int32), k)      # [k*S*H], choices one after the other
  return a.replace(token=jnp.broadcast_to(rows, (groups, rows.size)), expert=turn(a.expert), choices=k,
                   weight=turn(a.weight), slot=turn(a.slot), num_tokens=size * heads)


class SwitchHead(nnx.Module):
  """Attention whose values and outputs are mixtures of experts, E of each head (arXiv:2312.07987, section 2).

  q_h = x Wq_h, k_h = x Wk_h, v_h = sum_e s_he x V_he, y = sum_h sum_e s'_he a_h O_he. The attention of head h
  is a_h. The source token chooses the V of its values, the target token the O of its outputs. All V and O are
  experts, H * E of them. So few heads are enough: fewer attention matrices at equal parameters.

  Args:
    d_model, num_heads: D and H.
    head_dim:   width of the part of queries and keys that rotary positions turn; it comes first.
    nope_dim:   width of the part that rotary positions do not turn; P = head_dim + nope_dim.
    router:     recipe of a router of token choice; every head and projection has a router of its own.
    mixed:      which projections are mixtures: the paper's are values and outputs. With 'o' alone and one
      expert the heads are gated by sigmoids, as the released code has it for E = 1.
    executor, group_size: see `moe.Moe`; nothing is dropped, so best a dropless executor.
    dropout_rate: on values, in training, with one mask for all queries.
    init_scale: variance scale s of sqrt(s / fan_in).
  Differs: the released dropout is on queries. Both selections see what attention sees. MoEUT
    (arXiv:2405.16039) makes values of what is not normalised: `attend` takes both.
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, router: ranges.Named('router'),
               mixed: ranges.Many(ranges.Choice('v', 'o'), least=1) = ('v', 'o'),
               nope_dim: ranges.Natural = 0, executor: ranges.Spelled('executor') = 'blocks',
               group_size: ranges.Count | None = None, dropout_rate=0.0, init_scale=1.0, rngs):
    width = head_dim + nope_dim
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal')
    matrix = lambda rows, columns, *names: axes.param(init, (rows, columns), *names, rngs=rngs)
    mixture = functools.partial(Mixture, d_model, num_heads=num_heads, router=router, executor=executor,
                                group_size=group_size, rngs=rngs)
    inward, joined = ('embed', 'joined_kv'), num_heads * width
    self.wq, self.wk = matrix(d_model, joined, *inward), matrix(d_model, joined, *inward)
    self.v = mixture(d_model, width, init_scale=init_scale) if 'v' in mixed else None
    self.wv = None if 'v' in mixed else matrix(d_model, joined, *inward)
    # The sum over heads is part of the fan.
    self.o = mixture(width, d_model, init_scale=init_scale / num_heads) if 'o' in mixed else None
    self.wo = None if 'o' in mixed else matrix(joined, d_model, *inward[::-1])
    self.reports = tuple(name for name in ('v', 'o') if name in mixed)
    self.num_heads = num_heads
    self.head_dim = head_dim
    self.width = width
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], dict of Aux, carry) for x [B,T,D].

    A cache in `carry` is extended at visible.slot.
    """
    return self.attend(x, x, ctx, carry)

  def attend(self, x: jax.Array, source: jax.Array, ctx: contract.Context,
             carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], dict of Aux, carry); values are made of source [B,T,D], all else of x [B,T,D]."""
    seen, cache = ctx.visible, carry.get(contract.CACHE)
    q, k = (self._turned(linear.apply(x, w), seen.turn) for w in (self.wq, self.wk))
    v, aux_v = self._values(x, source, ctx)                          # [B, T, H, P]
    scale = self.width ** -0.5
    if cache is None:
      v = noise.dropout(v, self.dropout_rate, ctx.key if ctx.train else None, broadcast_dims=(-1,))
      y = attend.attend(q, k, v, mask=seen.mask, bias=seen.bias, scale=scale, causal=seen.causal)
    else:
      cache = recall.extended(cache, k, v, seen.slot)
      carry = contract.joined(carry, cache)
      y = recall.attend(q, cache, mask=seen.mask, bias=seen.bias, scale=scale)
    y, aux_o = self._out(y, x, ctx)
    return y, aux_v | aux_o, carry

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Returns an empty cache of `length` places: dict of k and v [B,H,K,P], k turned already."""
    return recall.empty(batch, self.num_heads, length, self.width, dtype)

  def _turned(self, y, turn):
    """y [B,T,H*P] as [B,T,H,P], the first `head_dim` numbers of a head turned."""
    y = y.reshape(*y.shape[:2], self.num_heads, self.width)
    return y if turn is None else rotary.rotate(y, turn)

  def _values(self, x, source, ctx):
    if self.v is None:
      return linear.apply(source, self.wv).reshape(*x.shape[:2], self.num_heads, self.width), {}
    rows = jnp.broadcast_to(source[:, :, None], (*x.shape[:2], self.num_heads, source.shape[-1]))
    v, aux = self.v(rows, x, ctx.fold('v'))
    return v, dict(v=aux)

  def _out(self, y, x, ctx):
    if self.o is None:
      return linear.apply(y.reshape(*y.shape[:2], -1), self.wo), {}
    of_heads, aux = self.o(y, x, ctx.fold('o'))                      # [B, T, H, D]
    return jnp.sum(of_heads, axis=2, dtype=jnp.float32).astype(x.dtype), dict(o=aux)
