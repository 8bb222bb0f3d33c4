"""DeepSeek-V4: top-k by the square root of a softplus, in the first layers by a table of token ids."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import balance
from stmoe.core import bias as bias_lib
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import tables
from stmoe.errors import UserError


def deepseek_v4(logits: jax.Array, bias: jax.Array, mask: jax.Array, k: int, *,
                hashed: jax.Array | None = None, route_scale: float = 1.5, sequence: jax.Array | None = None,
                tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to the k experts of largest s + b, or to those of its id.

  s = sqrt(ln(1 + e^z)). Gates are s over the sum of the chosen s, times the scale, however experts were
  chosen: a router that chooses nothing still weighs. Nothing is dropped.

  Args:
    logits: f32[G,S,E]; bias: f32[E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    hashed: i32[G,S,k] experts of the tokens, or None: the best ones.
    sequence: i32[G,S] scope of the loss, see `balance.sequences`; None = a whole group.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  scores = choices.sqrt_softplus(logits)                             # [G, S, E]
  if hashed is not None and choose is None:
    choice = hashed
  else:
    choice = (choose or choices.top)(jax.lax.stop_gradient(scores) + bias, k)      # [G, S, k]
  gates = choices.values(scores, choice)                             # without the bias
  gates = gates / (gates.sum(axis=-1, keepdims=True) + 1e-20) * route_scale
  return bias_lib.decided(logits, scores, bias, choice, gates, mask, sequence, tokens)


def spread(first: jax.Array, num_experts: int, k: int) -> jax.Array:
  """Returns i32[V,k], k different experts of every id: the `first` i32[V], the others E / k apart from it.

  Every choice is as balanced as the first one.

  >>> spread(jnp.array([0, 3]), 4, 2).tolist()
  [[0, 2], [3, 1]]
  """
  return (first[:, None] + jnp.arange(k) * num_experts // k) % num_experts


class DeepSeekV4(nnx.Module):
  """Routing of DeepSeek-V4 (2026; transformers, Megatron-LM): sqrt-softplus scores, bias or table; dropless.

  Args:
    k:           choices per token.
    hashed:      experts by a frozen table of token ids, as in the first three sparse layers; else the best.
    table:       file of `stmoe tables` with the first expert of every id (kind balanced: by unigram counts);
      '' = in turn, as Megatron-LM has it.
    vocab_size:  V, of the model; for `hashed`.
    route_scale: factor of the gates (Flash 1.5, Pro 2.5).
    rate:        by which a bias moves after every optimizer step; of `hashed` layers none does.
  Losses: balance (of sequences; without coefficient where the bias balances).
  State: bias f32[E], moved by `bias_lib.update` once per optimizer step; of hashed layers table i32[V,k].
  Differs: the recipe of the released tables is not published; see `table` and `spread`.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               hashed: ranges.Flag = False, table: ranges.Text = '', vocab_size: ranges.Count = 8008,
               route_scale: ranges.Positive = 1.5, rate: ranges.NonNegative = 1e-3, rngs):
    choices.check_k('deepseek_v4', k, num_experts)
    if table and not hashed:
      raise UserError(f'router deepseek_v4: table={table!r} is for hashed layers; nearest: hashed=True')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.bias = axes.state(jnp.zeros(num_experts), 'unmodeled')
    self.num_experts = num_experts
    self.k = k
    self.normalize_gates = True
    self.route_scale = self.gates_sum = route_scale
    self.rate = 0.0 if hashed else rate
    found = tables.read(table) if table else None
    if found and (found.num_experts, len(found.table)) != (num_experts, vocab_size):
      raise UserError(f'router deepseek_v4: {table} has {len(found.table)} ids, {found.num_experts} experts; '
                      f'wanted: {vocab_size} and {num_experts}, as stmoe tables makes them')
    self.file = table or None                                        # runs keep a copy of it
    self.vocabulary = found and found.vocabulary                     # digest of the one it is for; None = any
    first = jnp.asarray(found.table) if found else jnp.arange(vocab_size) % num_experts
    self.table = axes.state(spread(first, num_experts, k), 'unmodeled', None) if hashed else None

  @property
  def num_ids(self) -> int | None:
    """V, the ids that the table has; None without a table."""
    return None if self.table is None else self.table.shape[-2]

  def commit(self, aux: contract.Aux) -> None:
    """Moves the bias by the load of one optimizer step, aux.load f32[E]."""
    self.bias[...] = bias_lib.update(self.bias[...], aux.load, self.rate)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; raises UserError for a table of another vocabulary."""
    if self.table is not None and ctx.vocab_size not in (None, self.num_ids):
      raise UserError(f'router deepseek_v4: a table of {self.num_ids} ids in a model of '
                      f'{ctx.vocab_size}; nearest: vocab_size={ctx.vocab_size}')
    a, aux = deepseek_v4(
        logits, self.bias[...], ctx.mask, self.k, route_scale=self.route_scale, tokens=ctx.tokens,
        hashed=None if self.table is None else self.table[...][ctx.ids],
        sequence=balance.sequences(ctx.segments, ctx.positions), choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
