"""Rewiring experts on the fly (arXiv:2510.14853): router logits adapted to the text while it is written.

No data and no parameter is needed. Each router gets one vector per text, added to its logits. The vectors
learn by the language-model loss of the text itself: first of the prompt, then again of prompt and answer.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import optax

from stmoe import lookup
from stmoe import modules
from stmoe import ranges
from stmoe.decode import loop
from stmoe.decode.strategies import sample
from stmoe.errors import UserError
from stmoe.routers import wrappers

GIVEN = 'rewire_{}'                      # the name of the vector of a router among what its model is given
CONFIDENCE = 'confidence_{}'             # the name of the record of a router, see `Measured`
OPTIMIZERS = dict(adamw=optax.adam, sgd=optax.sgd)   # without weight decay: the vectors are 0 at first

# A vector for every router: dict number of the router -> f32[B,E].
Vectors = dict[int, jax.Array]


def adapting(model: typing.Any) -> typing.Any:
  """Returns `model` with vectors around its routers, which its batches then give: `given`.

  Every layer has a router of its own in a stack that is unrolled (`Stack.unroll`); blocks that are tied have
  one. Raises UserError for a router without logits, or with none at all.
  """
  recipe = lookup.constructor('router', 'offset')
  return modules.wrapped_each(model, lambda number: lambda d_model, **rest: recipe(
      d_model, source=GIVEN.format(number), **rest))


class Measured(wrappers.Deciding):
  """The router `inner`, which also records how sure it is, and tells how many logits it has.

  The record CONFIDENCE f32[G,S] is the sum of a token's k largest probabilities, softmax of the logits.

  Args:
    number: of the router; its record is called by it.
    tell:   called with the number of logits, while the model is traced.
  """

  def __init__(self, d_model, *, inner, number, tell=lambda width: None, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.number = number
    self.tell = tell

  def decide(self, logits, ctx, carry, choose=None):
    """Returns the Routed of `inner` for logits f32[G,S,E], with its record."""
    self.tell(logits.shape[-1])
    routed = super().decide(logits, ctx, carry, choose)
    sure = jax.lax.top_k(jax.nn.softmax(logits), self.k or 1)[0].sum(axis=-1)      # [G, S]
    own = {CONFIDENCE.format(self.number): sure}
    return routed.replace(aux=routed.aux.recorded(**own))


def zeros(model: typing.Any, batch: dict) -> Vectors:
  """Returns vectors of 0 for the routers of a model and the rows of a batch; virtual experts count, too.

  batch: as for `losses`.
  """
  widths: dict[int, int] = {}
  measured = modules.wrapped_each(model, lambda number: functools.partial(
      Measured, number=number, tell=functools.partial(widths.__setitem__, number)))
  jax.eval_shape(lambda batch: measured(batch, alone=True)[0], batch)
  return {number: jnp.zeros((len(batch['decoder_segment_ids']), width))
          for number, width in sorted(widths.items())}


def given(vectors: Vectors) -> dict[str, jax.Array]:
  """Returns the part of a batch, arrays [B,E], that gives the vectors to a model of `adapting`."""
  return {f'given/{GIVEN.format(number)}': vector for number, vector in vectors.items()}


def losses(model: typing.Any, batch: dict, vectors: Vectors) -> jax.Array:
  """Returns J f32[B] (section 3): mean -log p of the tokens of each row after its first.

  Args:
    model: of `adapting`.
    batch: decoder_ arrays i32[B,T] with one text a row, padded on the right. A prefix is read from left to
      right, too.
  """
  plain = {name: a for name, a in batch.items() if name != 'decoder_causal_attention'}
  logits, _ = model(plain | given(vectors), alone=True)              # [B, T, V]
  ids, real = batch['decoder_input_tokens'], batch['decoder_segment_ids'] > 0
  right = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)[..., 0]
  counted = real[:, 1:]
  return -jnp.where(counted, right, 0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)


@dataclasses.dataclass(frozen=True)
class Rule:
  """How vectors learn; the fields are those of `Rewire`."""
  steps: int
  optimizer: str
  rate: float
  layers: tuple[int, ...] | None
  confident: float
  cap: float | None
  stop: bool

  def chosen(self, model: typing.Any, batch: dict) -> dict[int, jax.Array]:
    """Returns dict number of a router -> bool[B,1]: whether its vector learns on each row of a batch.

    Of `layers` these are the share `confident` of largest mean confidence on the row, at least one.

    Args:
      model: as it is, without vectors; batch: as for `losses`.
    Raises UserError for layers that there are not.
    """
    rows, number = len(batch['decoder_segment_ids']), len(modules.routers(model))
    among = tuple(range(number)) if self.layers is None else self.layers
    if max(among) >= number:
      raise UserError(f'decode.layers={among}: the model has routers 0 to {number - 1}; nearest: '
                      f'{number - 1}')
    most = ranges.rounded_up(self.confident * len(among))
    if most == len(among):
      return {layer: jnp.ones((rows, 1), bool) for layer in among}
    sure = jnp.stack(_confidence(model, batch, number), axis=1)[:, jnp.array(among)]         # [B, n]
    kept = jax.lax.top_k(sure, most)[1]                              # [B, most]
    learns = jax.nn.one_hot(kept, len(among), dtype=bool).any(axis=1)              # [B, n]
    return {layer: learns[:, place, None] for place, layer in enumerate(among)}

  def learn(self, model: typing.Any, batch: dict, vectors: Vectors,
            chosen: dict[int, jax.Array]) -> tuple[Vectors, dict]:
    """Returns (vectors after `steps` updates, dict of what each of them saw).

    The dict has `losses` f32[steps,B] and `grads` before, and `vectors` after each update, Vectors with a
    leading axis. The optimizer starts anew.

    Args:
      chosen: of `chosen`.
    """
    rule = OPTIMIZERS[self.optimizer](self.rate)
    fixed = {layer: vector for layer, vector in vectors.items() if layer not in chosen}

    def whole(learning):
      loss = losses(model, batch, fixed | learning)
      return loss.sum(), loss                                        # rows do not meet: each has its gradient

    def update(carry, _):
      learning, before, last, going, state = carry
      (_, loss), grads = jax.value_and_grad(whole, has_aux=True)(learning)
      rose = going & (loss > last) if self.stop else jnp.zeros_like(going)
      change, state = rule.update(grads, state)
      after = {}
      for layer, vector in learning.items():
        moved = vector + jnp.where(chosen[layer], change[layer], 0)
        moved = moved if self.cap is None else jnp.clip(moved, -self.cap, self.cap)
        kept = jnp.where(rose[:, None], before[layer], vector)       # of rows that have stopped
        after[layer] = jnp.where((going & ~rose)[:, None], moved, kept)
      return (after, learning, loss, going & ~rose, state), dict(losses=loss, grads=grads, vectors=after)

    learning = {layer: vectors[layer] for layer in chosen}
    rows = len(batch['decoder_segment_ids'])
    carry: typing.Any = learning, learning, jnp.full(rows, jnp.inf), jnp.ones(rows, bool), rule.init(learning)
    (learning, *_), seen = jax.lax.scan(update, carry, length=self.steps)
    return fixed | learning, seen


def _confidence(model, batch, number):
  """[f32[B]] of every router: its mean confidence over the tokens of each row."""
  measured = modules.wrapped_each(model, lambda number: functools.partial(Measured, number=number))
  _, aux = measured(batch, alone=True)   # reports come in another order than routers
  real = batch['decoder_segment_ids'] > 0
  records = [record for report in aux.values() for record in report.records.items()]
  found = [[a for name, a in records if name.endswith(CONFIDENCE.format(n))] for n in range(number)]
  if any(len(own) != 1 or own[0].size != real.size for own in found):
    raise UserError(f'decode.name=rewire: {sum(map(len, found))} layers report their confidence, and there '
                    f'are {number} routers; nearest: decode.confident=1.0')
  return [jnp.where(real, own.reshape(real.shape), 0).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
          for [own] in found]


class Rewire:
  """The most probable token, or a draw, of a model whose routers adapt to the text (arXiv:2510.14853).

  In a cycle, vectors learn for `steps` steps on the text so far, then `interval` tokens are written. Every
  row has vectors of its own, which go on from phase to phase. With steps=0 nothing adapts.

  Args:
    steps, rate:  of a phase; the learning rate is in units of logits.
    interval:     tokens between phases. The first phase is on the prompt.
    optimizer:    of the vectors, fresh in every phase.
    layers:       numbers of the routers that may adapt, in the order of layers; None = all.
    confident:    the share of these that adapts, those that are surest on the prompt.
    cap:          largest size of an entry of a vector, or None.
    stop:         a row whose loss rose goes back a step, and rests until the next phase.
    refresh:      after a phase the whole text is read again, as the changed routers read it. False keeps what
      was remembered of earlier tokens, which is cheaper.
    temperature:  0 = the most probable token; else a draw, with top_k and top_p as in `sample`.
    eos_id:       the id that ends a text, or several.
  Differs: the paper's text was not reachable. One vector for all tokens, the choice of layers by confidence,
    stopping and all sizes are our reading of its abstract.
  """

  tell = None                            # see loop.run

  def __init__(self, *, steps: ranges.Natural = 5, rate: ranges.Positive = 0.05, interval: ranges.Count = 128,
               optimizer: ranges.Choice(*OPTIMIZERS) = 'adamw',
               layers: ranges.Many(ranges.Natural, 1) | None = None, confident: ranges.PartOf1 = 0.3,
               cap: ranges.Positive | None = None, stop: ranges.Flag = True, refresh: ranges.Flag = True,
               temperature: ranges.NonNegative = 0.0, top_k: ranges.Natural = 0,
               top_p: ranges.PartOf1 = 1.0, eos_id=1):
    layers = None if layers is None else tuple(sorted(set(layers)))
    self.rule = Rule(steps, optimizer, rate, layers, confident, cap, stop)
    self.interval = interval
    self.refresh = refresh
    self.temperature = temperature
    self.top_k, self.top_p = top_k, top_p
    self.eos_id = eos_id

  def check(self, model):
    """Raises UserError unless the model is a decoder alone with routers in two parts."""
    if len(model.stacks()) > 1:
      raise UserError('decode.name=rewire learns from the text that a decoder reads, and this model has an '
                      'encoder; nearest: decode.name=greedy')
    if not modules.routers(model):
      raise UserError('decode.name=rewire needs a model with a router; nearest: decode.name=greedy')
    try:
      adapting(model)
    except UserError as error:
      raise UserError(f'decode.name=rewire: {error}') from None

  def __call__(self, model, batch, length, key):
    """Returns i32[B,length]; `key` is used with a temperature, and by routers that draw."""
    def choose(logits, i):
      if not self.temperature:
        return jnp.argmax(logits, axis=-1)
      logits = sample.shortlist(logits / self.temperature, self.top_k, self.top_p)
      return jax.random.categorical(jax.random.fold_in(key, i), logits)

    if not self.rule.steps:
      logits, cache = model.begin(batch, length, key)
      return loop.run(logits, cache, model.step, choose, length, self.eos_id, self.tell)
    logits, state, step = self.phases(model, batch, length, key)
    return loop.run(logits, state, step, choose, length, self.eos_id, self.tell)

  def phases(self, model, batch, length, key):
    """Returns (logits f32[B,V] of the first token, state, step) for `loop.run`."""
    chosen, vectors, model = self.rule.chosen(model, batch), zeros(model, batch), adapting(model)
    vectors, _ = self.rule.learn(model, batch, vectors, chosen)
    if self.interval >= length:
      logits, cache = model.begin(batch | given(vectors), length, key)
      return logits, cache, model.step
    text = _room(batch, length)
    first, room = (text, self.interval) if self.refresh else (batch, length)
    logits, cache = model.begin(first | given(vectors), room, key)

    def again(text, vectors, ids, real, cache):
      vectors, _ = self.rule.learn(model, text, vectors, chosen)
      if self.refresh:
        return vectors, *model.begin(text | given(vectors), room, key)
      return vectors, *model.step(ids, real, cache.replace(given=cache.given | given(vectors)))

    def go_on(text, vectors, ids, real, cache):
      return vectors, *model.step(ids, real, cache)

    def step(ids, real, state):
      text, vectors, written, cache = state
      text = _appended(text, ids, real)
      due = (written + 1) % self.interval == 0
      vectors, logits, cache = jax.lax.cond(due, again, go_on, text, vectors, ids, real, cache)
      return logits, (text, vectors, written + 1, cache)
    return logits, (text, vectors, jnp.int32(0), cache), step


def _room(batch, length):
  """The batch of prompts with room for `length` more tokens in every row."""
  widen = lambda a: jnp.pad(a, ((0, 0), (0, length)))
  return {name: widen(a) if name.startswith('decoder_') else a for name, a in batch.items()}


def _appended(text, ids, real):
  """The batch `text` with the tokens ids i32[B] behind the texts of the rows that are real bool[B]."""
  segments, rows = text['decoder_segment_ids'], jnp.arange(len(ids))
  at = jnp.sum(segments > 0, axis=1)                                 # [B]
  put = lambda a, value: a.at[rows, at].set(jnp.where(real, value, a[rows, at]).astype(a.dtype))
  return text | dict(decoder_input_tokens=put(text['decoder_input_tokens'], ids),
                     decoder_segment_ids=put(segments, 1),
                     decoder_positions=put(text['decoder_positions'], at))
