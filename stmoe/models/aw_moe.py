"""AW-MoE: a gate that a user's behaviours make, weighted by what each says of the item to be ranked."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts.tasks import multi_gate
from stmoe.parts.tasks import tower

GATES = dict(attention='of the history', constant='one learned vector', uniform='1 / E')
OUTPUTS = dict(scalar='the gate mixes the logits of experts', vector='the gate mixes their states')


class AwMoe(nnx.Module):
  """Attention weighted mixture of experts (Gong et al., 2023, arXiv:2306.05011), reconstructed (unverified).

  With vectors e_j of the M past items, e_t of an item to be ranked, e_q of a query, and other features o:
    a_j = MLP_a([e_j; e_t; e_j * e_t; e_q])                  z = [sum_j a_j e_j; e_t; e_q; o]
    g = sum_j a'_j MLP_g([e_j; e_t; e_j * e_t])              a' as a, with weights of its own
    score = sum_e g_e s_e(z)                                 without a history g is a learned vector

  In training a second view of the history keeps each item with probability 1 - rho, and one at least. Only
  the gate is computed of this view, g'. Loss `contrast` pulls g' to g, see `contrast`.

  Args:
    num_items, num_queries, num_features: ids of items and queries (0 = none), numbers of an item.
    num_history_features: numbers of a past item, which both MLPs read beside e_j.
    length, num_outputs: M and K, items of a history and of a row.
    d_model:     width of all vectors.
    num_experts, expert: E, and the widths of an expert.
    hidden:      widths within MLP_a and MLP_g.
    outputs:     'scalar', or 'vector': the states of experts are mixed, and one layer makes the score.
    gate:        'attention'; 'constant' and 'uniform' are what it is compared with.
    gate_softmax, unit_softmax: softmax over experts; over the real past items, of a and a'.
    masked:      rho.
    temperature: tau.
    stop_gradient: whether the view of the whole history learns nothing from `contrast`.
    group_size:  rows that are compared with one another; None = all of a (micro)batch. With microbatches only
      a `group_size` keeps the loss what it is for the whole batch.
  Losses: contrast. Metrics: gate_norm, view_cosine.
  """

  targets = ('values',)

  def __init__(self, *, num_items: ranges.Count, num_queries: ranges.Natural = 0,
               num_features: ranges.Natural = 0, num_history_features: ranges.Natural = 0,
               length: ranges.Count = 20, num_outputs: ranges.Count = 1,
               d_model: ranges.Count = 16, num_experts: ranges.Count = 4,
               expert: ranges.Many(ranges.Count, least=1) = (64, 32),
               hidden: ranges.Many(ranges.Count) = (32,), outputs: ranges.Choice(*OUTPUTS) = 'scalar',
               gate: ranges.Choice(*GATES) = 'attention', gate_softmax: ranges.Flag = False,
               unit_softmax: ranges.Flag = False, masked: ranges.Below1 = 0.5,
               temperature: ranges.Positive = 0.1, stop_gradient: ranges.Flag = False,
               group_size: ranges.Count | None = None, blocks=None, rngs):
    init, pairs = nnx.initializers.normal(0.1), num_outputs * length
    table = lambda ids: axes.param(init, (ids, d_model), 'vocab', 'embed', rngs=rngs) if ids else None
    self.items: typing.Any = table(num_items)
    self.queries: typing.Any = table(num_queries)
    query, pair = d_model if num_queries else 0, 3 * d_model + num_history_features
    unit = lambda width, out: tower.Tower((width, *hidden, out), rows=pairs, rngs=rngs)
    self.unit = unit(pair + query, 1)
    self.experts = multi_gate.Experts(2 * d_model + query + num_features, tuple(expert),
                                      num_experts=num_experts, rngs=rngs)
    attends = gate == 'attention'
    self.gate_unit: typing.Any = unit(pair + query, 1) if attends else None
    self.gate: typing.Any = unit(pair, num_experts) if attends else None
    uniform = nnx.initializers.constant(1 / num_experts)
    self.alone = None if gate == 'uniform' else axes.param(uniform, (num_experts,), 'unmodeled', rngs=rngs)
    self.head = (Scores(num_experts, expert[-1], rngs=rngs) if outputs == 'scalar'
                 else tower.Tower((expert[-1], 1), rngs=rngs))
    self.num_items, self.num_queries = num_items, num_queries
    self.num_features, self.num_history_features = num_features, num_history_features
    self.length, self.num_outputs, self.num_experts = length, num_outputs, num_experts
    self.outputs, self.gate_softmax, self.unit_softmax = outputs, gate_softmax, unit_softmax
    self.masked, self.temperature = masked, temperature
    self.stop_gradient, self.group_size = stop_gradient, group_size

  def __call__(self, batch: dict, key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (scores f32[B,K], aux: dict(gate=Aux)).

    Args:
      batch: items i32[B,K], history i32[B,M], history_weights [B,M], weights [B,K]; group i32[B], the users;
        features f32[B,K,F], history_features f32[B,M,F'] and query i32[B] where the model has those.
      key, train, step: PRNG key or None, whether this is training, i32[] optimizer step.
      tokens: dict of `count_tokens`; None = of this batch.
    """
    self.check(batch)
    tokens = self.count_tokens(batch) if tokens is None else tokens
    mask = batch['weights'] > 0                                      # [B, K]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['decoder'])
    seen = batch['history_weights'] > 0                              # [B, M]
    past, item = self.items[...][batch['history']], self.items[...][batch['items']]
    query = self.queries[...][batch['query']] if self.queries is not None else None
    pairs = paired(past, item, batch.get('history_features'))        # [B, K, M, 3D + F']
    asked = pairs if query is None else jnp.concatenate(
        [pairs, jnp.broadcast_to(query[:, None, None], (*pairs.shape[:3], query.shape[-1]))], axis=-1)
    z = [self.pooled(self.unit(asked), past[:, None], seen), item]
    z += [] if query is None else [jnp.broadcast_to(query[:, None], item.shape)]
    z += [batch['features']] if self.num_features else []
    g, aux = self.gated(pairs, asked, seen, batch, ctx)              # [B, K, E]
    return self.score(jnp.concatenate(z, axis=-1), g, ctx), aux

  def pooled(self, unit: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
    """Returns [B,K,F], the sum over past items of values [B,K or 1,M,F] weighted by units [B,K,M,1].

    seen: bool[B,M], the past items that count.
    """
    real = seen[:, None, :, None]
    if self.unit_softmax:
      unit = jax.nn.softmax(jnp.where(real, unit, -1e9), axis=2)
    return jnp.sum(jnp.where(real, unit * values, 0.0), axis=2)

  def gated(self, pairs: jax.Array, asked: jax.Array, seen: jax.Array, batch: dict,
            ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (g [B,K,E], dict(gate=Aux)) from pairs [B,K,M,F], those with the query, and seen bool[B,M]."""
    shape = (*ctx.mask.shape, self.num_experts)
    if self.gate is None:
      even = jnp.full((self.num_experts,), 1 / self.num_experts)
      g = jnp.broadcast_to(even if self.alone is None else self.alone[...], shape)
      return self._softened(g), dict(gate=contract.Aux({}, _load(g, ctx.mask), {}))
    unit, each = self.gate_unit(asked), self.gate(pairs)             # [B, K, M, 1], [B, K, M, E]

    def of(view):
      none = ~jnp.any(view, axis=1)[:, None, None]
      return self._softened(jnp.where(none, self.alone[...], self.pooled(unit, each, view)))
    g, losses = of(seen), {}
    real = lambda x: jnp.sum(jnp.where(ctx.mask, x, 0)) / jnp.maximum(ctx.tokens, 1)
    metrics = dict(gate_norm=real(jnp.linalg.norm(jax.lax.stop_gradient(g), axis=-1)))
    key = ctx.fold('view').key
    if ctx.train and key is not None and self.masked:
      view = of(thinned(key, seen, self.masked))                     # [B, K, E]
      losses['contrast'], metrics['view_cosine'] = self._contrast(g, view, batch, ctx)
    return g, dict(gate=contract.Aux(losses, _load(g, ctx.mask), metrics))

  def _softened(self, g):
    return jax.nn.softmax(g, axis=-1) if self.gate_softmax else g

  def _contrast(self, g, view, batch, ctx):
    """(the loss f32[], the mean cosine of the views f32[]) of gates [B,K,E], in groups of rows."""
    rows, num_outputs, _ = g.shape
    size = self.group_size or rows
    if rows % size:
      raise UserError(f'model.group_size={size} does not divide the {rows} rows of a microbatch; nearest: '
                      f'{errors.closest(size, errors.divisors(rows))}')
    user = batch.get('group', jnp.arange(rows))
    user = jnp.broadcast_to(user[:, None], ctx.mask.shape)           # [B, K]
    cut = lambda x: x.reshape(rows // size, size * num_outputs, *x.shape[2:])
    g = jax.lax.stop_gradient(g) if self.stop_gradient else g
    each, cosine = jax.vmap(lambda *parts: contrast(*parts, self.temperature))(
        *map(cut, (g, view, user, ctx.mask)))
    mean = lambda x: jnp.sum(x) / jnp.maximum(ctx.tokens, 1)
    return mean(each), mean(jax.lax.stop_gradient(cosine))

  def score(self, z: jax.Array, g: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns the scores f32[B,K] of items with inputs z [B,K,D] and gates g [B,K,E]."""
    x, g = z.reshape(-1, 1, z.shape[-1]), g.reshape(-1, self.num_experts)
    h, _ = self.experts(jnp.repeat(x, self.num_experts, axis=1), ctx)                # [B K, E, H]
    if self.outputs == 'vector':
      return self.head(jnp.einsum('be,beh->bh', g, h)).reshape(z.shape[:2])
    return jnp.sum(g * self.head(h), axis=1).reshape(z.shape[:2])

  def check(self, batch: dict) -> None:
    """Raises UserError where a batch has other shapes than the model."""
    found = dict(length=batch['history'].shape[1], num_outputs=batch['items'].shape[1],
                 **{f'num_{name}': batch[name].shape[-1] if name in batch else 0
                    for name in ('features', 'history_features')})
    for field, number in found.items():
      if number != getattr(self, field):
        raise UserError(f'model.{field}={getattr(self, field)}, and the data have {number}; nearest: '
                        f'model.{field}={number}')
    if ('query' in batch) != bool(self.num_queries):
      raise UserError(f'model.num_queries={self.num_queries}, and the data have '
                      f'{"" if "query" in batch else "no "}queries; nearest: model.num_queries='
                      f'{"data.num_queries" if "query" in batch else 0}')

  def count_tokens(self, batch: dict) -> dict:
    """Returns the real items to be ranked in `batch`: dict(decoder=f32[])."""
    return {'decoder': jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks: there are none."""
    return []


class Scores(nnx.Module):
  """A number of every expert's state [...,E,H] -> [...,E]."""

  def __init__(self, num_experts: int, width: int, *, rngs):
    init = nnx.initializers.lecun_normal(batch_axis=(0,))
    self.w = axes.param(init, (num_experts, width, 1), 'expert', 'mlp', 'unmodeled', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'expert', rngs=rngs)

  def __call__(self, h: jax.Array) -> jax.Array:
    """Returns [...,E] for h [...,E,H]."""
    return jnp.einsum('...eh,eho->...e', h, self.w[...]) + self.b[...]


def _load(g, mask):
  """F32[E], the sums of the absolute weights [B,K,E] of experts over the real items bool[B,K]."""
  return jnp.sum(jnp.where(mask[..., None], jnp.abs(jax.lax.stop_gradient(g)), 0), axis=(0, 1))


def paired(past: jax.Array, item: jax.Array, told: jax.Array | None = None) -> jax.Array:
  """Returns [e_j; e_t; e_j * e_t] [B,K,M,3D] of past items [B,M,D] and items [B,K,D].

  told: [B,M,F], numbers of past items that stand behind, or None.
  """
  shape = (*item.shape[:2], *past.shape[1:])
  past, item = jnp.broadcast_to(past[:, None], shape), jnp.broadcast_to(item[:, :, None], shape)
  parts = [past, item, past * item]
  if told is not None:
    parts.append(jnp.broadcast_to(told[:, None], (*shape[:3], told.shape[-1])))
  return jnp.concatenate(parts, axis=-1)


def thinned(key: jax.Array, seen: jax.Array, share: float) -> jax.Array:
  """Returns bool[B,M]: of the places `seen` bool[B,M] each with probability 1 - share, and at least one."""
  draw = jnp.where(seen, jax.random.uniform(key, seen.shape), -1.0)
  return seen & ((draw >= share) | (draw == jnp.max(draw, axis=1, keepdims=True)))


def contrast(g: jax.Array, view: jax.Array, user: jax.Array, real: jax.Array,
             temperature: float) -> tuple[jax.Array, jax.Array]:
  """Returns (InfoNCE f32[N], cos(g_i, g'_i) f32[N]), 0 where a row is not real.

  -log exp(cos(g_i, g'_i) / tau) / (exp(cos(g_i, g'_i) / tau) + sum_i' exp(cos(g_i, g_i') / tau)), where i'
  are the real rows of other users than that of i.

  Args:
    g, view: [N,E], gates of N rows and of their second views.
    user, real: i32[N], bool[N].
    temperature: tau.
  """
  unit = lambda x: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
  g, view = unit(g), unit(view)
  cosine = jnp.sum(g * view, axis=-1)                                # [N]
  others = (user[:, None] != user) & real                            # [N, N]
  logits = jnp.where(others, g @ g.T / temperature, -jnp.inf)
  both = jnp.concatenate([cosine[:, None] / temperature, logits], axis=1)
  loss = jax.nn.logsumexp(both, axis=1) - cosine / temperature
  return jnp.where(real, loss, 0), jnp.where(real, cosine, 0)
