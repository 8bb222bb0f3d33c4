"""Self-contrast with unchosen experts (SCMoE, arXiv:2405.14507): a well-routed pass against a poor one."""

import functools
import math

import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe import modules
from stmoe import ranges
from stmoe.decode import loop
from stmoe.errors import UserError


def contrast(strong, weak, alpha, beta):
  """Returns scores f32[B,V]: (1 + beta) strong - beta weak, -inf where strong < max(strong) + ln(alpha).

  Args:
    strong, weak: f32[B,V] logits of the two passes.
  """
  valid = strong >= strong.max(axis=-1, keepdims=True) + math.log(alpha)
  return jnp.where(valid, (1 + beta) * strong - beta * weak, -jnp.inf)


def routed_by(model, ranks):
  """Returns `model` with the routing of `ranks`, a tuple; `model` itself for None.

  Raises UserError for a router without an order, or ranks that the router does not have.
  """
  return model if ranks is None else modules.wrapped(
      model, functools.partial(lookup.constructor('router', 'ranks'), ranks=ranks))


class Contrast:
  """The largest score of `contrast`, or a draw from the scores; training-free, two passes and two caches.

  The weak pass, prompt and encoder included, uses only some experts of every sparse layer: those at
  `routing_ranks` of a token's order, 0 the first (see `routers/wrappers/ranks.py`).

  Args:
    alpha, beta:   0.1 and 0.5 in the paper, beta tuned for each task.
    routing_ranks: of the weak pass; (2,) in the released example, its third expert.
    strong_ranks:  of the strong pass; None = the router as it is.
    temperature, weak_temperature: the logits of the strong and of the weak pass are divided by them, before
      anything else.
    draw:          draw from softmax(scores) instead of taking the largest.
    eos_id:        the id that ends a text, or several.
  Differs: a rank of E, one expert by chance in the released code, is refused. Texts end with an end token,
    which the released code forbids unless it is asked to stop early.
  """

  tell = None                            # see loop.run

  def __init__(self, *, alpha: ranges.PartOf1 = 0.1, beta: ranges.NonNegative = 0.5,
               routing_ranks: ranges.Many(ranges.Natural, 1) = (2,),
               strong_ranks: ranges.Many(ranges.Natural, 1) | None = None,
               temperature: ranges.Positive = 1.0, weak_temperature: ranges.Positive = 1.0,
               draw: ranges.Flag = False, eos_id=1):
    if not 0 < alpha <= 1:
      raise UserError(f'decode.alpha={alpha}: above 0 and at most 1; nearest: {min(1.0, max(alpha, 0.1))}')
    self.alpha = alpha
    self.beta = beta
    self.routing_ranks = tuple(routing_ranks)
    self.strong_ranks = None if strong_ranks is None else tuple(strong_ranks)
    self.temperatures = temperature, weak_temperature
    self.draw = draw
    self.eos_id = eos_id

  def check(self, model):
    """Raises UserError unless the model has sparse layers and their routers can be ranked."""
    if not modules.sparse(model):
      raise UserError('decode.name=contrast needs a model with a router; nearest: decode.name=greedy')
    for chosen in (self.routing_ranks, self.strong_ranks):
      try:
        routed_by(model, chosen)
      except UserError as error:
        raise UserError(f'decode.name=contrast: {error}') from None

  def __call__(self, model, batch, length, key):
    """Returns i32[B,length]; `key` is used with `draw`, and by routers that draw."""
    def score(*passes):
      strong, weak = (logits / t for logits, t in zip(passes, self.temperatures))
      return contrast(strong, weak, self.alpha, self.beta)
    well, poorly = routed_by(model, self.strong_ranks), routed_by(model, self.routing_ranks)

    def step(ids, real, caches):
      strong, first = well.step(ids, real, caches[0])
      weak, second = poorly.step(ids, real, caches[1])
      return score(strong, weak), (first, second)

    def choose(scores, i):
      if self.draw:
        return jax.random.categorical(jax.random.fold_in(key, i), scores)
      return jnp.argmax(scores, axis=-1)

    strong, first = well.begin(batch, length, key)
    weak, second = poorly.begin(batch, length, key)
    return loop.run(score(strong, weak), (first, second), step, choose, length, self.eos_id, self.tell)
