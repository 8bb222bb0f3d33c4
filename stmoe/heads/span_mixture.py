"""A span head behind a mixture of experts that is gated once for a sequence (arXiv:2204.09598)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import lookup
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.heads import span_head

# What the gate reads of a sequence x [B,T,D] with real tokens real [B,T,1]: [B,D].
GATES = {
    'first': lambda x, real: x[:, 0],
    'mean': lambda x, real: jnp.sum(x * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1),
}


class SpanMixture(nnx.Module):
  """Start and end logits of sum_e g_e E_e(x), with one decision g of a router for all tokens of a row.

  The gates of several choices are divided by their sum. This makes them the softmax over the k largest
  logits (Shazeer et al., arXiv:1701.06538, eq. 3 to 5). A single gate stays as it is: divided, it would be 1
  and without gradient. Rows without any token are not routed, and padding reaches no expert.

  Args:
    length:     T, positions of a row.
    router:     recipe of a router of token choice, whose tokens here are sequences.
    experts:    recipe of an expert bank [.,D] -> [.,D].
    gate:       'first': the gate reads the first token ([CLS]); 'mean': the mean of the real tokens.
    group_size: sequences that are balanced together; None = all of a batch or microbatch.
    executor:   see `moe.Moe`; nothing is dropped, so best a dropless executor.
  """

  def __init__(self, d_model: int, *, length, router: ranges.Named('router'),
               experts: ranges.Named('experts'), gate: ranges.Choice(*GATES) = 'first',
               group_size: ranges.Count | None = None, executor: ranges.Spelled('executor') = 'blocks', rngs):
    if gate not in GATES:
      raise UserError(f'head span_mixture: gate={gate!r} (there are: {", ".join(GATES)})')
    self.router = checked.built(router, d_model, rngs)
    if contract.offered(self.router, 'commit') or contract.offered(self.router, 'init_carry'):
      raise UserError(f'head span_mixture: router {type(self.router).__name__} remembers something, of other '
                      'steps or layers; nearest: vmoe')
    self.router.rows_per_sequence = 1
    self.rows_per_sequence = length
    self.experts = banks.made(experts, d_model, num_experts=self.router.num_experts, rngs=rngs)
    self.out = span_head.SpanHead(d_model, length=length, rngs=rngs)
    self.d_model = d_model
    self.gate = gate
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (logits f32[B,T,2], Aux, carry) for x [B,T,D].

    Args:
      ctx: Context of the tokens, but for `tokens`, which here counts rows: the real rows of the whole batch,
        over the number of microbatches.
    """
    with jax.named_scope('route'):
      routed = self.route(x, ctx)
    a = spread(routed.assignment, ctx.mask)
    key = ctx.fold('experts').key if ctx.train else None
    y = lookup.executor(self.executor)(x, a, self.experts, key)      # [B, T, D]
    return self.out(y, ctx, carry)[0], routed.aux, carry

  def route(self, x: jax.Array, ctx: contract.Context) -> contract.Routed:
    """Returns the Routed of sequences x [B,T,D], in groups of sequences."""
    batch = x.shape[0]
    size = self.group_size or batch
    if batch % size:
      raise UserError(f'head span_mixture: group_size={size} does not divide the {batch} sequences of a '
                      f'batch; nearest: {errors.around(size, errors.divisors(batch))}')
    regroup = lambda a: a.reshape(batch // size, size, *a.shape[1:])
    gate_input = GATES[self.gate](x.astype(jnp.float32), ctx.mask[..., None])        # [B, D]
    real = regroup(ctx.mask.any(axis=1))                             # [G, S]
    return checked.route(self.router, regroup(gate_input), ctx.fold('router').instead(real, ctx.tokens), {})


def spread(a: contract.Assigned, mask: jax.Array) -> assignment.Assignment:
  """Returns the Assignment in which every token has the choices of its sequence; nothing is dropped.

  Args:
    a:    Assignment of B sequences, in any groups.
    mask: bool[B,T] real tokens; padding goes nowhere.
  """
  if isinstance(a, assignment.SoftAssignment) or a.choices is None:
    raise UserError('head span_mixture needs a router that chooses experts for every sequence; nearest: vmoe')
  k = a.choices
  batch, length = mask.shape
  of_sequence = lambda v: v.reshape(-1, k, a.num_tokens).swapaxes(1, 2).reshape(batch, 1, k)
  expert = of_sequence(a.expert)
  weight = of_sequence(jnp.where(assignment.live(a), a.weight, 0))
  if k > 1:
    weight = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1e-9)
  expert = jnp.where(of_sequence(assignment.live(a)), expert, a.dead)              # [B, 1, k]
  wide = lambda v: jnp.broadcast_to(v, (batch, length, k))
  edges = assignment.from_choices(wide(expert), wide(weight), a.num_experts, a.num_virtual)
  return assignment.cap(assignment.kill_padding(edges, mask), length)
