"""Hash layers: experts by a fixed hash of the token id; nothing is learned (arXiv:2106.04426)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import hashing
from stmoe.core import metrics
from stmoe.core import seeds
from stmoe.core import tables
from stmoe.errors import UserError

BUILT = ('balanced', 'clustered', 'dispersed')   # their tables are made before training: `stmoe tables`
looked_up = lambda table, ctx, k: table[ctx.ids]
# kind -> bucket i32[G,S] of (table i32[V], context, K). The paper's, and a control (fresh).
KINDS = {
    'random': looked_up, 'balanced': looked_up, 'clustered': looked_up, 'dispersed': looked_up,
    'previous': lambda table, ctx, k: table[ctx.before()],
    'bigram': lambda table, ctx, k: hashing.bigram(ctx.ids, ctx.before(), k),
    'position': lambda table, ctx, k: hashing.position(ctx.positions, k),
    'future': lambda table, ctx, k: table[hashing.after(ctx.ids, ctx.positions)],
    'fresh': lambda table, ctx, k: hashing.fresh(ctx.key, table, ctx.ids, k),
}
COMPUTED = ('bigram', 'position')      # kinds without a table
_random = functools.cache(tables.random_table)


def route(bucket: jax.Array, mask: jax.Array, capacity: int, num_experts: int,
          tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): every real token to the expert of its bucket, weight 1.

  Args:
    bucket:   i32[G,S] in [0,K).
    mask:     bool[G,S] real tokens; padding goes nowhere.
    capacity: C; S drops nothing.
    tokens:   divisor of token-averaged metrics, see `losses.token_mean`.
  """
  edges = assignment.from_choices(bucket[..., None], jnp.ones((*bucket.shape, 1)), num_experts)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  return a, contract.Aux(losses={}, load=metrics.load(edges), metrics=dict(
      drop_frac=metrics.drop_frac(edges, a), left_behind=metrics.left_behind(a, mask, tokens),
      slot_usage=metrics.slot_usage(a)))


class Hash(nnx.Module):
  """Experts by a hash of the input token (arXiv:2106.04426). No parameters; a table i32[V].

  The token is the token read at the place, never the token to be predicted. The table is a
  constant of the model, kept in its checkpoints.

  Args:
    kind:       a key of KINDS. random, balanced, clustered and dispersed look the token up; previous looks
      up the token before; bigram hashes both; position counts places in the document; future looks up
      the token after (an oracle that leaks); fresh draws anew for every occurrence in training.
    table:      file of `stmoe tables`, needed for balanced, clustered and dispersed; '' = a random table.
    vocab_size: V, of the model.
    seed:       of the random table; 42 is the reference's.
    hash_seed_per_layer: every layer draws its random table from the key of its own initial parameters,
      folded with `seed`; otherwise all layers have the same table.
    capacity_factor: (train, eval) slots per token; None (the paper) = nothing is dropped.
    min_capacity: least slots of an expert.
    allow_causal: accept kind='future' in a causal stack.
  Losses: none.
  Differs: previous and bigram read id 0 before the first token of a document; the paper does not say
  what they read. The reference keeps its table in no checkpoint.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, kind: ranges.Choice(*KINDS) = 'random',
               table: ranges.Text = '', vocab_size: ranges.Count = 8008, seed: ranges.Seed = 42,
               hash_seed_per_layer: ranges.Flag = False, capacity_factor: ranges.Factors = (None, None),
               min_capacity: ranges.Natural = 4, allow_causal: ranges.Flag = False, rngs):
    choices.named(KINDS, kind, 'router hash: kind')
    if kind in BUILT and not table:
      raise UserError(f'router hash: kind={kind!r} needs a table made before training: stmoe tables NAME '
                      f"--kind {kind} -o FILE.npz, then table=FILE.npz; nearest without one: kind='random'")
    if table and (kind in COMPUTED or hash_seed_per_layer):
      raise UserError(f'router hash: table={table!r} is not used by '
                      f'{f"kind={kind!r}" if kind in COMPUTED else "hash_seed_per_layer=True"}')
    self.num_experts = num_experts
    self.kind = kind
    self.seed = seed
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.allow_causal = allow_causal
    self.seeded = not table and kind not in COMPUTED                 # another seed, another hash
    file = self._read(table, vocab_size) if table else None
    self.file = table or None                                        # runs keep a copy of it
    self.vocabulary = file and file.vocabulary                       # digest of the table's; None = any
    if file or kind in COMPUTED:
      value = file and file.table
    elif hash_seed_per_layer:
      key = seeds.fold(rngs.params(), seed)
      value = jax.random.randint(key, (vocab_size,), 0, num_experts)
    else:
      value = _random(vocab_size, num_experts, seed)
    self.table = None if value is None else axes.state(jnp.asarray(value, jnp.int32), 'unmodeled')

  def _read(self, path, vocab_size):
    """The table of file `path`; raises UserError if it has another V, K or kind."""
    file = tables.read(path)
    _same_length(len(file.table), vocab_size, f' ({path})')
    if file.num_experts != self.num_experts:
      raise UserError(f'router hash: {path} has {file.num_experts} buckets, num_experts={self.num_experts}; '
                      f'nearest: num_experts={file.num_experts}')
    if self.kind in ('random', *BUILT) and file.kind != self.kind:
      raise UserError(f'router hash: {path} is a {file.kind} table, kind={self.kind!r}; '
                      f'nearest: kind={file.kind!r}')
    return file

  @property
  def num_ids(self) -> int | None:
    """V, the ids that the table has; None without a table."""
    return None if self.table is None else self.table.shape[-1]

  @property
  def undecodable(self) -> str | None:
    """Why tokens cannot be routed one by one, or None."""
    return ("kind='future' reads the token after a place; nearest: kind='previous'"
            if self.kind == 'future' else None)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError for another vocabulary, an oracle in a causal stack."""
    if self.kind == 'future' and ctx.causal and not self.allow_causal:
      raise UserError("router hash: kind='future' is the token to be predicted, an oracle that leaks it in a "
                      "causal stack; nearest: kind='previous' (or allow_causal=True)")
    if self.num_ids is not None and ctx.vocab_size is not None:
      _same_length(self.num_ids, ctx.vocab_size)
    table = None if self.table is None else self.table[...]
    drawing = ctx.fold('hash') if ctx.train else ctx.replace(key=None)
    bucket = KINDS[self.kind](table, drawing, self.num_experts)      # [G, S]
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    a, aux = route(bucket, ctx.mask, capacity, self.num_experts, ctx.tokens)
    return contract.Routed(a, aux, carry)


def _same_length(ids, vocab_size, where=''):
  if ids != vocab_size:
    raise UserError(f'router hash: a hash table for another vocabulary{where}: it has {ids} ids and the '
                    f'model has {vocab_size}; set vocab_size={vocab_size}, or make the table again')
