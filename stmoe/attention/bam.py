"""BAM: a mixture of whole attention layers, all of which run for every token (arXiv:2408.08274)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.transport import rows
from stmoe.errors import UserError
from stmoe.layers import moe
from stmoe.parts import cache as caches
from stmoe.parts import linear
from stmoe.parts import rotary


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float,
           bias: jax.Array | None = None) -> jax.Array:
  """Returns softmax(scale q k^T) v of n experts, [B,T,n,H,P].

  Args:
    q:    [B,T,n,H,P] queries.
    k, v: [B,n,Hkv,K,P] of KV experts, or [B,Hkv,K,P], which all experts share: as a cache holds them.
    mask: bool[B,1,T,K], True where a query sees a key; bias: [1,H,T,K] added to the logits, or None.
  """
  keys, promoted = 'bnhkp' if k.ndim == 5 else 'bhkp', jnp.promote_types(q.dtype, jnp.float32)
  grouped = q.reshape(*q.shape[:3], k.shape[-3], -1, q.shape[-1])    # [B, T, n, Hkv, H/Hkv, P]
  logits = scale * jnp.einsum(f'btnhrp,{keys}->bnhrtk', grouped, k, preferred_element_type=promoted)
  if bias is not None:
    logits += bias.reshape(len(bias), 1, *logits.shape[2:4], *bias.shape[2:])
  logits = jnp.where(mask[:, :, None, None], logits, jnp.finfo(promoted).min)
  probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)            # [B, n, Hkv, H/Hkv, T, K]
  return jnp.einsum(f'bnhrtk,{keys}->btnhrp', probs, v).reshape(q.shape)


def mixed(y: jax.Array, gates: jax.Array, wo: jax.Array) -> jax.Array:
  """Returns sum_j g_j y_j Wo_j, [B,T,D], for y [B,T,n,H,P], gates [B,T,n] and wo [n,H*P,D]."""
  y = (y * gates[..., None, None]).astype(y.dtype)
  return linear.apply(y.reshape(*y.shape[:2], -1), wo.reshape(-1, wo.shape[-1]))


def gates_of(a: assignment.Assignment) -> jax.Array:
  """Returns [G,S,E]: the weight with which each token goes to each expert, 0 where none goes.

  >>> expert, weight = jnp.array([[[0, 2], [1, 0]]]), jnp.array([[[0.5, 0.25], [1.0, 0.75]]])
  >>> gates_of(assignment.cap(assignment.from_choices(expert, weight, 3), 2)).tolist()
  [[[0.5, 0.0, 0.25], [0.75, 1.0, 0.0]]]
  """
  goes = assignment.live(a)[..., None] & (a.expert[..., None] == jnp.arange(a.num_experts))
  return rows.add_up(jnp.where(goes, a.weight[..., None], 0), a)     # dead weights may be NaN


class Experts(nnx.Module):
  """The matrices of n attention experts by name: those of `attention.Attention`, with n before their axes."""

  def __init__(self, wq: nnx.Param, wo: nnx.Param, wk: nnx.Param | None = None, wv: nnx.Param | None = None):
    self.wq, self.wk, self.wv, self.wo = wq, wk, wv, wo


class Bam(nnx.Module):
  """y = sum_j g_j MHA_j(x) over n attention layers (arXiv:2408.08274, section 3).

  All experts run for every token and attend to all tokens. So a router of fewer choices than experts
  (the paper's ablation) saves nothing: the other gates are 0.

  Args:
    d_model, num_heads, head_dim, num_kv_heads: D, H, P and Hkv of every expert.
    router:       recipe of a router of n experts. The paper's is soft: k = n probabilities as they are.
    shared_kv:    keys and values are of all experts together, one cache; else of each expert, n caches.
    group_size:   tokens routed together, None = a sequence; it matters only to routers that drop tokens.
    scaled, init_scale: see `attention.Attention`.
    dropout_rate: on values, in training, with one mask for all queries.
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, num_kv_heads=None, router: ranges.Named('router'),
               shared_kv: ranges.Flag = False, group_size: ranges.Count | None = None,
               scaled: ranges.Flag = True, dropout_rate=0.0, init_scale=1.0, rngs):
    if num_heads % (num_kv_heads or num_heads):
      raise UserError(f'num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; possible: '
                      f'{", ".join(map(str, errors.divisors(num_heads)))}')

    def matrix(lead, shape, names, scale=init_scale):
      init = nnx.initializers.variance_scaling(scale, 'fan_in', 'normal', batch_axis=range(len(lead)))
      return axes.param(init, (*lead, *shape), *['expert'] * len(lead), *names, rngs=rngs)

    self.router = checked.built(router, d_model, rngs)
    each, inward, width = (self.router.num_experts,), ('embed', 'joined_kv'), num_heads * head_dim
    keys = [matrix(() if shared_kv else each, (d_model, (num_kv_heads or num_heads) * head_dim), inward)
            for _ in 'kv']
    self.experts = Experts(
        matrix(each, (d_model, width), inward, init_scale if scaled else init_scale / head_dim),
        matrix(each, (width, d_model), inward[::-1]), *[] if shared_kv else keys)
    common: list = keys if shared_kv else [None, None]
    self.wk, self.wv = common
    self.rows_per_token = self.router.num_experts
    self.d_model, self.head_dim, self.group_size = d_model, head_dim, group_size
    self.scale = head_dim ** -0.5 if scaled else 1.0
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]; a cache in `carry` is extended at visible.slot."""
    carry, cache = contract.apart(carry)
    gates, aux, carry = self._gates(x, ctx, carry)
    seen, (wk, wv) = ctx.visible, self._keys()
    q, k = (self._heads(x, w, seen.turn) for w in (self.experts.wq, wk))
    v = self._heads(x, wv)
    v = noise.dropout(v, self.dropout_rate, ctx.key if ctx.train else None, broadcast_dims=(-1,))
    k, v = (jnp.moveaxis(a, 1, -2) for a in (k, v))                  # [B, n, Hkv, T, P], or [B, Hkv, T, P]
    if cache is not None:
      cache = caches.extended(cache, dict(k=k, v=v), seen.slot, -2)
      k, v = cache['k'], cache['v']
    y = attend(q, k, v, seen.mask, self.scale, seen.bias)            # [B, T, n, H, P]
    return mixed(y, gates, self.experts.wo[...]), aux, contract.joined(carry, cache)

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Returns an empty cache of `length` places: k and v [B,n,Hkv,K,P], or [B,Hkv,K,P]; k is turned."""
    *each, _, width = self._keys()[0].shape[-3 if self.wk is None else -2:]        # without an axis of layers
    zeros = jnp.zeros((batch, *each, width // self.head_dim, length, self.head_dim), dtype)
    return dict(k=zeros, v=zeros)

  def _keys(self):
    """The matrices of keys and values, of the experts or of all together."""
    return (self.experts.wk, self.experts.wv) if self.wk is None else (self.wk, self.wv)

  def _gates(self, x, ctx, carry):
    """(g [B,T,n], Aux, carry): g_j is 0 for experts that a token did not choose."""
    batch, length, _ = x.shape
    groups, size = (batch * length, 1) if ctx.alone else moe.num_groups(batch, length, self.group_size)
    regroup = lambda a: a.reshape(groups, size, *a.shape[2:])
    ungroup = lambda a: a.reshape(batch, length, *a.shape[2:])
    with jax.named_scope('route'):
      routed = checked.route(self.router, axes.constrain(regroup(x), 'group', None, None),
                             ctx.fold('router').group(groups, size), jax.tree.map(regroup, carry))
    if isinstance(routed.assignment, assignment.SoftAssignment):
      raise UserError(f'attention bam: {checked.file(self.router)} mixes tokens, not experts; nearest: '
                      "router.name='st_moe'")
    return ungroup(gates_of(routed.assignment)), routed.aux, jax.tree.map(ungroup, routed.carry)

  def _heads(self, x, w, turn=None):
    """[B,T,n,H,P] of x [B,T,D] times w [n,D,H*P], or [B,T,H,P] of w [D,H*P]; all heads turned alike."""
    wide = w[...].swapaxes(0, 1).reshape(x.shape[-1], -1) if w.ndim == 3 else w      # one product
    y = linear.apply(x, wide).reshape(*x.shape[:2], -1, self.head_dim)
    y = y if turn is None else rotary.rotate(y, turn)
    return y.reshape(*x.shape[:2], *w.shape[:-2], -1, self.head_dim)
