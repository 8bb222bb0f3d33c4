"""Soft MoE: every slot is a mixture of all tokens, every token of all slots (arXiv:2308.00951)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def normalize(x: jax.Array, axis: int, epsilon: float = 1e-6) -> jax.Array:
  """Returns any array x scaled to unit l2 norm along `axis`: x / sqrt(sum x^2 + epsilon).

  >>> normalize(jnp.array([[3.0, 4.0]]), -1).round(3).tolist()
  [[0.6000000238418579, 0.800000011920929]]
  """
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True) + epsilon)


def soft_moe(logits: jax.Array, mask: jax.Array,
             tokens: jax.Array | None = None) -> tuple[assignment.SoftAssignment, contract.Aux]:
  """Returns (SoftAssignment, Aux) of Soft MoE (section 2.1, algorithm 1).

  Dispatch weights are a softmax over the tokens of a group, for each slot; combine weights
  a softmax over all slots of all experts, for each token. Padding has neither.

  Args:
    logits: f32[G,S,E,C], of every token for every slot.
    mask:   bool[G,S] real tokens; tokens: see `losses.token_mean`.
  """
  real = mask.astype(bool)[..., None, None]                          # [G, S, 1, 1]
  # Finite, so that a group of nothing but padding has no NaN on the way.
  dispatch = jnp.where(real, jax.nn.softmax(jnp.where(real, logits, -1e30), axis=1), 0)
  combine = jnp.where(real, jax.nn.softmax(logits, axis=(2, 3)), 0)
  a = assignment.SoftAssignment(dispatch, combine)
  d, c, z = jax.lax.stop_gradient((dispatch, combine, logits))
  slots = c.reshape(*c.shape[:2], -1)                                # [G, S, E*C]
  numbers = dict(
      drop_frac=jnp.float32(0), router_conf=losses.token_mean(slots.max(axis=-1), mask),
      router_entropy=metrics.entropy(slots, mask, tokens),
      router_logit_max=metrics.logit_max(z.reshape(slots.shape), mask),
      # Of a slot's weights over tokens, the largest: 1 where a slot is one token.
      dispatch_conf=losses.token_mean(d.max(axis=1).mean(axis=(1, 2)), mask))
  # How many tokens' worth of output comes from each expert.
  return a, contract.Aux(losses={}, load=c.sum(axis=(0, 1, 3)), metrics=numbers)


class SoftMoe(nnx.Module):
  """Soft mixtures instead of choices (arXiv:2308.00951, section 2); nothing is dropped or to be balanced.

  Logits are scale * <x / |x|, w / |w|>, w a vector for each slot (section 2.3), so that they
  do not grow with D. All tokens of a group mix, so group_size is one sequence or image.

  Args:
    slots:        per expert; the paper found many experts of 1 or 2 slots best, E * slots about S.
    allow_causal: accept a stack in which a token must not depend on later tokens.
  Losses: none.
  """

  undecodable = "its slots mix all tokens of a group, later ones too; nearest: router name='st_moe'"

  def __init__(self, d_model: int, *, num_experts: ranges.Count, slots: ranges.Count = 1,
               allow_causal: ranges.Flag = False, rngs):
    if slots < 1:
      raise UserError(f'router soft_moe: slots={slots}; every expert needs at least 1')
    # Only directions count. Two axes, as every matrix that tokens are multiplied by.
    self.w = gate.weights(d_model, num_experts * slots, rngs=rngs)
    self.scale = axes.param(nnx.initializers.ones, (1,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.slots = slots
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack."""
    if ctx.causal and not self.allow_causal:
      raise UserError('router soft_moe mixes later tokens into every slot in a causal stack; nearest: router '
                      "name='st_moe' (or allow_causal=True)")
    x = normalize(x.astype(jnp.float32), axis=-1)
    w = normalize(self.w[...], axis=0) * self.scale[...]
    logits = jnp.einsum('gsd,dn->gsn', x, w, precision='highest')    # [G, S, E*C]
    logits = logits.reshape(*x.shape[:2], self.num_experts, self.slots)
    return contract.Routed(*soft_moe(logits, ctx.mask, ctx.tokens), carry)
