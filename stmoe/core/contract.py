"""What passes between layers, routers and the trainer, and what a router or a layer may offer.

`Context` goes in beside the activations, `Aux` comes back out, and `Routed` is what a
router answers. All three are data: no module is found by name, nothing is sown.

A router is called with (x [G,S,D], Context, carry), returns `Routed`, and has `num_experts`. `OFFERS` lists
everything else that somebody may ask of a router, a layer or a bank. Beside each offer stands what holds for
modules without it. No base class is needed: `Router`, `Bank`, `Executor` and `SubLayer` are
protocols, for type checkers.
"""

import dataclasses
import typing
import zlib

from flax import struct
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe.core import assignment
from stmoe.core import hashing

# Memory across layers, arrays [B,T,.] by name; in decoding also caches, see `CACHE` below.
Carry = dict[str, typing.Any]
# choose(scores f32[G,S,E], k) -> i32[G,S,n]: the experts of a token, see `decide` in OFFERS.
Choose = typing.Callable[[jax.Array, int], jax.Array]
# What executors run: edges with their places, or slots that are mixtures.
Assigned = assignment.Assignment | assignment.SoftAssignment

# What is given of tokens whose routing was recorded: i32[B,T,L,n], see routers/wrappers/replay.py.
ROUTES = 'routes'
# What is given of rows whose texts are numbered, i32[B,1]: who has the number of a text shares its draws.
TEXT_NUMBER = 'text_number'
# What is given of tokens that are numbered through, i32[B,T]: which token of its stack's batch it is.
TOKEN_NUMBER = 'token_number'
PER_TOKEN = dict(per_token=True)     # metadata of a field of Context with an entry for every token


class Context(struct.PyTreeNode):
  """What a layer or router may know besides its activations.

  Arrays are [B,T] in a stack and [G,S] inside a router (`layers/moe.py` regroups them).

  given: what else is known of tokens, by name: [B,T,...] with an entry a token, or [B,1,...] with
    an entry a row. In a router every such array is [G,S,...].
  visible: what the sub-layer that is called sees besides its input: of attention a `parts.visible.Visible`.
    In a stack and a block `visible` is a dict, by the names of sub-layers.
  """
  mask: jax.Array = struct.field(metadata=PER_TOKEN)   # bool[B,T], True = real token; not from zeros
  ids: jax.Array = struct.field(metadata=PER_TOKEN)    # i32[B,T] token ids
  positions: jax.Array = struct.field(metadata=PER_TOKEN)  # i32[B,T] position in its own sequence
  segments: jax.Array = struct.field(metadata=PER_TOKEN)   # i32[B,T] number of the packed row; 0 = padding
  step: jax.Array                    # i32[] optimizer step, traced: schedules need no recompile
  tokens: jax.Array                  # f32[] divisor of token-averaged losses (real tokens, see below)
  key: jax.Array | None = None       # JAX PRNG key; None = no randomness (evaluation)
  vocab_size: int | None = struct.field(pytree_node=False, default=None)   # V of `ids`, where known
  train: bool = struct.field(pytree_node=False, default=False)
  causal: bool = struct.field(pytree_node=False, default=False)
  # Every token is routed as if it were alone: no capacity is reached, and it does not matter which tokens
  # are computed together. So decoding routes, and all that must equal decoding; see `layers.moe.grouping`.
  alone: bool = struct.field(pytree_node=False, default=False)
  given: dict = dataclasses.field(default_factory=dict)
  visible: typing.Any = None
  # i32[B,T] what `before` returns, where the order of these tokens does not say it.
  earlier: jax.Array | None = None
  # In a block whose outputs somebody edits: (end of a name, y [B,T,D]) -> y, see `modules.edited`.
  edit: typing.Callable | None = struct.field(pytree_node=False, default=None)

  # `tokens` is the number of real tokens of the whole batch divided by the number of
  # microbatches. Dividing sums by it, rather than by the microbatch's own count, makes the
  # mean over microbatches equal the value of the undivided batch even when padding is uneven.

  @classmethod
  def of(cls, tokens: jax.Array, /, mask: jax.Array | None = None, *, step: int | jax.Array = 0,
         **fields) -> 'Context':
    """Returns the Context of whole rows, one sequence a row.

    Args:
      tokens: i32[B,T] ids. Or activations [B,T,D] of what has no ids: such tokens are numbered.
      mask:   bool[B,T], True = real token; None = all are real. Padding is never told from the ids.
      step:   of the optimizer, for routers with schedules.
      fields: the other fields: key and train=True in training, causal, vocab_size, given, ...

    >>> ctx = Context.of(jnp.array([[5, 6, 7], [8, 9, 0]]), mask=jnp.array([[1, 1, 1], [1, 1, 0]], bool))
    >>> ctx.positions.tolist(), ctx.segments.tolist(), float(ctx.tokens)
    ([[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [1, 1, 0]], 5.0)
    """
    ids = jnp.issubdtype(tokens.dtype, jnp.integer)
    if tokens.ndim < 2 or not ids and tokens.ndim < 3:
      raise errors.UserError(f'tokens are {tokens.dtype}{list(tokens.shape)}; wanted: ids i32[B,T], or '
                             'activations [B,T,D]')
    mask = jnp.ones(tokens.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    if mask.shape != tokens.shape[:2]:
      raise errors.UserError(f'mask is of {list(mask.shape)}; wanted: one of {list(tokens.shape[:2])}, True '
                             'at real tokens')
    known = numbered(mask)
    if ids:
      known['ids'] = jnp.asarray(tokens, jnp.int32)
    count = jnp.sum(mask, dtype=jnp.float32)
    return cls(**dict(known, step=jnp.asarray(step, jnp.int32), tokens=count) | fields)

  @classmethod
  def of_batch(cls, batch: dict, stack: str, **fields) -> 'Context':
    """Returns the Context of a stack's tokens in a batch of the data, with a key of the stack's own.

    Args:
      batch: dict with i32[B,T] STACK_input_tokens, STACK_segment_ids and STACK_positions. What else is
        known comes as 'given/NAME' [B,...], of rows, or 'STACK_given/NAME' [B,T,...], of tokens.
      fields: the other fields.
    """
    segments = batch[f'{stack}_segment_ids']
    _check_some(segments)
    return cls(mask=segments > 0, ids=batch[f'{stack}_input_tokens'], positions=batch[f'{stack}_positions'],
               segments=segments, given=given(batch, stack), **fields).fold(stack)

  def known(self, name: str, reader: str) -> jax.Array:
    """Returns `given[name]`, [B,T,...] or [B,1,...]; raises UserError, naming `reader`, if there is none.

    Every batch of a source of data has the same names, so the first abstract step finds a missing one.
    """
    if name not in self.given:
      raise errors.UserError(
          f'{reader}: nothing is given as {name!r}{errors.nearest(name, self.given)} (there are: '
          f'{", ".join(self.given) or "none"}); a source of data has it in its batches as given/{name}, of '
          f'rows, or STACK_given/{name}, of tokens, and a prompt in its line of a .jsonl file')
    return self.given[name]

  def fold(self, name: str) -> 'Context':
    """Returns this context with a key of its own for `name`; the same names, the same keys."""
    if self.key is None:
      return self
    return self.replace(key=jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF))

  def before(self) -> jax.Array:
    """Returns i32[B,T]: the id one place earlier in the same sequence, `hashing.START` at its first token."""
    return hashing.before(self.ids, self.positions) if self.earlier is None else self.earlier

  def each(self, move: typing.Callable[[jax.Array], jax.Array]) -> 'Context':
    """Returns this context with `move` applied to every array of tokens [B,T,...], also in `given`."""
    fields = [f.name for f in dataclasses.fields(self) if f.metadata.get('per_token')]
    wide = lambda a: jnp.broadcast_to(a, (*self.mask.shape, *a.shape[2:]))
    return self.replace(**{name: move(getattr(self, name)) for name in fields}, earlier=move(self.before()),
                        given={name: move(wide(a)) for name, a in self.given.items()})

  def group(self, groups: int, size: int) -> 'Context':
    """Returns this context with its arrays [B,T,...] reshaped to [groups,size,...]."""
    return self.each(lambda a: a.reshape(groups, size, *a.shape[2:]))

  def instead(self, mask: jax.Array, tokens: jax.Array, vocab_size: int | None = None) -> 'Context':
    """Returns the context of other tokens than these, such as channels or whole rows: see `numbered`.

    Args:
      mask:   bool[G,S]. What is given of rows is kept in two cases: where the rows are the G groups, and
        where every token is a row (G * S = B).
      tokens: divisor of token-averaged losses.
    """
    groups, size = mask.shape
    rows = {name: a for name, a in self.given.items()
            if a.shape[1] == 1 and a.shape[0] in (groups, mask.size)}
    kept = {name: a if a.shape[0] == groups else a.reshape(groups, size, *a.shape[2:])
            for name, a in rows.items()}
    return self.replace(**numbered(mask), tokens=tokens, vocab_size=vocab_size, given=kept)


def numbered(mask: jax.Array) -> dict[str, typing.Any]:
  """Returns the fields of a Context for tokens bool[G,S] that are no words: they are numbered instead."""
  _check_some(mask)
  number = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
  return dict(mask=mask, ids=number, positions=number, segments=mask.astype(jnp.int32), earlier=None)


def _check_some(tokens):
  """Raises UserError for tokens [B,T] of which there are none."""
  if not tokens.size:
    raise errors.UserError(f'there are no tokens: {list(tokens.shape)} rows and tokens of each; wanted: at '
                           'least one, which may be padding')


def given(batch: dict, stack: str) -> dict[str, jax.Array]:
  """Returns the field `given` of a stack's Context: [B,1,...] of rows, [B,T,...] of tokens, by name."""
  rows = {name.removeprefix('given/'): a[:, None] for name, a in of_rows(batch).items()}
  prefix = f'{stack}_given/'
  return rows | {name.removeprefix(prefix): a for name, a in batch.items() if name.startswith(prefix)}


def of_rows(batch: dict) -> dict[str, jax.Array]:
  """Returns the part of a batch that is given of whole rows, arrays [B,...], which later tokens have too."""
  return {name: a for name, a in batch.items() if name.startswith('given/')}


# How the values of a batch's parts become the value of the whole batch, over their leading axis.
REDUCTIONS: dict[str, typing.Callable[..., jax.Array]] = {'sum': jnp.sum, 'mean': jnp.sum, 'max': jnp.max}


@struct.dataclass
class Statistic:
  """A number or array that `commit` reads; it knows how parts of a batch become the whole batch.

  A router itself reduces over its groups, which are the groups of all devices. `together` reduces over
  microbatches and passes. Statistics are made by `total`, `mean` and `largest`.

  scope: 'layer', or 'model': `commit` of every layer gets the one statistic of all layers that report it.
  """
  part: jax.Array
  count: jax.Array | None            # what `part` is divided by, of 'mean'
  reduction: str = struct.field(pytree_node=False)
  scope: str = struct.field(pytree_node=False, default='layer')

  @property
  def value(self) -> jax.Array:
    """The statistic itself, [...]; a 'mean' is 0 where nothing was counted."""
    if self.count is None:
      return self.part
    return jnp.where(self.count > 0, self.part / jnp.where(self.count > 0, self.count, 1), 0)

  def together(self) -> 'Statistic':
    """Returns the Statistic of the whole batch from arrays [M,...] of its M parts."""
    return jax.tree.map(lambda x: REDUCTIONS[self.reduction](x, 0), self)


def total(x: jax.Array) -> Statistic:
  """Returns the Statistic of an array x [...] that adds up: counts."""
  return Statistic(x, None, 'sum')


def mean(x: jax.Array, count: jax.Array, scope: str = 'layer') -> Statistic:
  """Returns the Statistic of a mean: x [...] are sums, count [...] or f32[] says over how many.

  >>> float(mean(jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0])).together().value)
  2.0
  """
  return Statistic(x, count, 'mean', scope)


def largest(x: jax.Array) -> Statistic:
  """Returns the Statistic of a maximum, an array x [...]."""
  return Statistic(x, None, 'max')


class Aux(struct.PyTreeNode):
  """What a sparse layer reports. All values are unweighted; the configuration weighs them.

  losses:  dict name -> f32[], for example 'balance' and 'z'.
  load:    f32[E] real (token, choice) pairs sent to each expert before any drop.
  metrics: dict name -> f32[]. For people: nothing is steered by them.
  statistics: dict name -> Statistic, for `commit` and metrics of the same name; `load` is a statistic, too,
    which adds up.
  records: dict name -> arrays [G,...] for analysis, of `routers/wrappers/trace.py`, or for what layers decide
    together (`joint` of OFFERS); no step keeps records.
  """
  losses: dict
  load: jax.Array
  metrics: dict
  statistics: dict = dataclasses.field(default_factory=dict)
  records: dict = dataclasses.field(default_factory=dict)

  def recorded(self, **own) -> 'Aux':
    """Returns this report with the records `own`, dict name -> arrays [G,...], beside those that it has."""
    return self.replace(records=self.records | own)

  def without(self, *names: str) -> 'Aux':
    """Returns this report without the records of these names, arrays [G,...]."""
    return self.replace(records={name: a for name, a in self.records.items() if name not in names})

  def edges(self) -> list[tuple[str, dict, int]]:
    """Returns (record, dict with token, expert, weight [G,N], E) of each router of which edges are recorded.

    A record is called 'edges', or '0.edges', '1.edges', ... of several routers.
    """
    names = [name for name in self.records if name.endswith('edges')]
    return [(name, self.records[name], self.load.shape[-1] // len(names)) for name in names]


# What the pure function of a router returns: the edges to execute and the report.
Decision = tuple[assignment.Assignment, Aux]
# What a sub-layer reports: nothing, an Aux, or an Aux of each of its parts.
Reported = Aux | dict[str, Aux] | None
# What a sub-layer returns: (y [B,T,D], what it reports, carry).
Answer = tuple[jax.Array, Reported, Carry]


def keyed(name: str, aux: Reported) -> dict[str, Aux]:
  """Returns dict name -> Aux of what the sub-layer called `name` returned.

  aux: None, an Aux, or a dict of Aux by parts: a part is called NAME.PART.
  """
  if aux is None:
    return {}
  return {f'{name}.{part}': a for part, a in aux.items()} if isinstance(aux, dict) else {name: aux}


# The name, in a carry, of the cache of a text that is decoded. A sub-layer gets this cache back itself; the
# next sub-layer does not. Blocks put the cache in before a sub-layer and take it out after.
CACHE = 'cache'


def joined(carry: Carry, cache: dict | None) -> Carry:
  """Returns a carry, arrays [B,T,.] by name, with a cache, arrays [B,K,...]; None = without one."""
  return carry if cache is None else carry | {CACHE: cache}


def apart(carry: Carry) -> tuple[Carry, typing.Any]:
  """Returns (carry, cache) from what `joined` returns: arrays [B,T,.] by name, arrays [B,K,...] or None."""
  return {name: a for name, a in carry.items() if name != CACHE}, carry.get(CACHE)


class Routed(struct.PyTreeNode):
  """A router's answer: the edges to execute, what it reports, and its memory across layers."""
  assignment: Assigned
  aux: Aux
  carry: Carry


class Router(typing.Protocol):
  """What a router is; what else it may offer is in `OFFERS`."""
  num_experts: int

  def __call__(self, x: jax.Array, ctx: Context, carry: Carry) -> Routed:
    """Returns Routed for x [G,S,D]."""


class SubLayer(typing.Protocol):
  """What stands in a block: attention, a feed-forward layer or a head."""

  def __call__(self, x: jax.Array, ctx: Context, carry: Carry) -> Answer:
    """Returns (y [B,T,D], what it reports, carry) for x [B,T,D]."""


class Rows(typing.Protocol):
  """Rows x [.,D] of experts in some layout (`core/transport`). Arrays without axis E are of all experts."""

  @property
  def x(self) -> jax.Array:
    """The rows themselves."""

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> typing.Self:
    """Returns rows times w [E,D,F] (plus b [E,F]) of their expert."""

  def scale(self, b: jax.Array) -> typing.Self:
    """Returns rows times b [E,F] of their expert, elementwise."""

  def shift(self, b: jax.Array) -> typing.Self:
    """Returns rows plus b [E,F] of their expert."""

  def map(self, f: typing.Callable[..., jax.Array], *others: typing.Self) -> typing.Self:
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself.

    Kernels do not run banks whose f reads further arrays of floats: `blocks` does.
    """

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> typing.Self:
    """Returns f(rows [.,D] of one expert, its parts of the arrays [E,...]) -> [.,F] of every expert."""


class Bank(typing.Protocol):
  """A bank of experts: its arrays belong to experts, [E,...], or are shared by all of them."""

  def __call__(self, rows: Rows, key: jax.Array | None = None) -> Rows:
    """Returns the rows' expert outputs, [.,D] -> [.,D'] in the same layout."""


class Executor(typing.Protocol):
  """What runs a bank on the edges of an assignment: a function `execute` of `core/execute`."""

  def __call__(self, x: jax.Array, a: Assigned, experts: Bank, key: jax.Array | None = None) -> jax.Array:
    """Returns [G,S,D'] for x [G,S,D]."""


# What a router may offer, and what holds for a router that does not.
OFFERS = {
    'k': None,                       # choices of a token
    # Whether the gates of several choices are divided by their sum. False: they are a softmax over all
    # experts as it is. None: neither.
    'normalize_gates': None,
    # What the gates of a token add up to, where that is the same for all tokens and `normalize_gates` does
    # not say that it is 1.
    'gates_sum': None,
    'reach': None,                   # experts that a token can choose among; None = all
    'num_virtual': 0,                # virtual experts among which it chooses, too
    'capacity_factor': None,         # (train, eval) slots per token; None = nothing is dropped
    'draws_at_eval': False,          # evaluation uses the key, where there is one
    # In two parts, so that routers that wrap it (routers/wrappers) may come between:
    # logits(x, ctx) -> f32[G,S,E], and decide(logits, ctx, carry, choose=None) -> Routed, where
    # choose(scores f32[G,S,E], k) -> i32[G,S,n] says which experts a token has; the token keeps them all.
    'logits': None,
    'decide': None,
    'needs_loss': (),                # losses of which one has to be weighed: nothing else trains some of it
    # Of a router that learns from what every expert does alone: (step i32[]) -> bool[], whether it does then.
    # A layer gives it `given['errors']` f32[G,S,E] in training (layers/mixer.py).
    'learns_from_errors': None,
    'seeded': None,                  # of hashes of the tokens: whether another field `seed` is another one
    'router': None,                  # of a sparse layer
    'opened': None,                  # of a bank: () -> the bank of plain arrays that executors run for it
    # Of a sub-layer that returns a dict of Aux: the names of its parts, which are attributes of the
    # sub-layer.
    'reports': (),
    # What follows may be offered by layers and banks, too; `stmoe.modules` walks to them.
    # What of `Context.given` it reads: name -> how many ids there are, or the shape of an entry of floats.
    # Checks give it such arrays.
    'reads': None,
    'init_carry': None,              # (x [B,T,D]) -> memory across layers, dict of [B,T,.] at the bottom
    'commit': None,                  # (Aux of a whole step) -> None; updates RouterState
    'accumulate': None,              # (Aux of a microbatch) -> None; so, for the later ones of its step
    'undecodable': None,             # why tokens cannot be computed one by one
    'vocabulary': None,              # digest of the only vocabulary that it is made for
    'num_ids': None,                 # of a router with a table of ids: how many; None = it reads none
    'activation': None,              # of a layer or bank: the name of a function of jax.nn
    'label': None,                   # what its parameters are called in section `groups` of a configuration
    # Of a block or a part of it: (dict layer name -> Aux of a whole stack, Context) -> the same dict with the
    # losses that all such layers have together. Models that know of such layers call it, `modules.joint`.
    'joint': None,
    # Of a part of a sub-layer: (name, attributes), those that it has in common with all parts of a stack that
    # tie them under that name; the stack holds and lends them, see `parts/tied.py`.
    'ties': None,
    # Of a part of a sub-layer: the name under which all arrays of its block are tied, '' where they are not.
    # A stack sets it: the part is then several layers, which may remember what the layers below them did.
    'tied_as': None,
    # Of a sub-layer: it normalises itself what it wants normalised, its block has no norm before it.
    'normalizes': False,
    # Of a model or a part of it: (name of an array of its own, that array of a start with other sizes) -> the
    # array in its own shape, or None; see `derive/refit.py`.
    'refit': None,
    'unmergeable': None,             # of a layer: why its adapters are no part of its matrices
    'lent': None,                    # of a stack: (part) -> a copy of a part of it, with what is held for it
    'uses': None,                    # how often in a forward of a stack its arrays are used; None = once
    'rows_per_sequence': None,       # rows that pass its matrices for a sequence, where not its tokens
    # Numbers of the matrices that multiply a row, where its arrays are none; or (tokens of a group) -> these.
    'products_per_row': None,
    # Of a sparse layer: all tokens of a batch are one group; on several devices, all tokens of each.
    'whole_batch': False,
    'rows_per_token': None,          # of a sparse layer: rows of a token, where not its router's edges
    # Of a sparse layer or its router: rows of a token in training besides those of the assignment.
    'more_rows': 0.0,
    'share_of_rows': None,           # part of its stack's tokens that pass it, 1 where not said
    # Matrices that multiply every token and are computed from its arrays: dict path below it -> shape of one.
    'computed': None,
}


def offered(module: object, name: str) -> typing.Any:
  """Returns what a router, layer or bank offers under `name` of OFFERS, or what holds without an offer."""
  return getattr(module, name, OFFERS[name])
