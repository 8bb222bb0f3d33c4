"""Parameters and floating-point operations of a configuration, without building its arrays.

The model is evaluated abstractly. Every matrix of the model costs 2 * size per token that passes through it.
How many tokens pass, the matrix's logical axes and its place tell. Of the tokens, (rows per token) / E pass a
matrix of a bank of experts; the router tells, or the layer's `rows_per_token`. Where experts share a matrix,
all these rows pass it. Embeddings are looked up. Attention adds its two products of all
queries with all keys and values, as the field counts them; causal attention leaves out some of these. A new
layer or router needs nothing here: a layer that has `router` and `experts` is understood wherever it is
nested. Where a layer's matrices are passed by something else than tokens, its `rows_per_sequence` says by how
many rows. Where a part of the tokens passes a module, its `share_of_rows` says which part. Where a module's
arrays are not the matrices themselves, its `products_per_row` says how many numbers the matrices have, or its
`computed` lists further matrices. Where rows pass a matrix several times, the module's `uses` says how often.
"""

import copy
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import checked
from stmoe.core import contract
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.runs import directory

BACKWARD = 2.0     # both operands of every product need a gradient of the product's own cost
SEVERAL = 'layers', 'expert', 'heads'    # axes along which an array is several matrices


class Matrix(NamedTuple):
  """An array of the model, and how much of the array is used.

  path, names, shape: its place in the model, its logical axes, its shape.
  share:   the part of it that a row uses: (rows per token) / E of a bank of E experts, else 1.
  rows:    rows that pass through it per sequence, where these are not the tokens of its stack.
  trained: whether it is a parameter; a frozen matrix is RouterState.
  said:    how many numbers multiply a row, where a module says so; None where the shape tells.
  uses:    how often in a forward a row of its stack passes through it: layers may have it in common.
  more:    as `share`, of the rows that training adds (`more_rows` of a sparse layer or router).
  """
  path: tuple
  names: tuple
  shape: tuple
  share: float
  rows: float | None
  trained: bool
  said: int | None = None
  uses: int = 1
  more: float = 0.0

  @property
  def size(self):
    return math.prod(self.shape)

  @property
  def multiplied(self):
    """How many of its numbers rows are multiplied by: all or none.

    All of a matrix: two axes besides layers, experts and heads, no look-up.
    """
    if self.said is not None:
      return self.said * math.prod(n for n, name in zip(self.shape, self.names) if name in SEVERAL)
    inner = [name for name in self.names if name not in SEVERAL]
    return self.size if len(inner) == 2 and 'relpos_buckets' not in inner and inner[0] != 'vocab' else 0


def abstract(cfg, scan_layers=True):
  """Returns the model of `cfg` with ShapeDtypeStructs for arrays; `scan_layers` replaces that of `cfg`."""
  fields = cfg.model.to_dict()
  if lookup.takes(lookup.constructor('model', fields['name']), 'scan_layers'):
    fields['scan_layers'] = scan_layers
  make, target = modules.maker(fields), _target(cfg)

  def build():
    rngs = nnx.Rngs(0)
    return modules.with_reader(make(blocks=cfg.blocks, rngs=rngs), target, fields['d_model'], rngs)
  return axes.abstract(build)


def matrices(cfg):
  """Returns the list of Matrix of every parameter and frozen array of the model of `cfg`."""
  model, length, passing, given_shapes = abstract(cfg), lengths(cfg), {}, _given(cfg)
  arrays, owners_said = [], set()
  for path, value in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, state.RouterState))):
    names = tuple(value.get_metadata().get('out_sharding') or (None,) * len(value.shape))
    owners, share, more = _owners(model, path), 1.0, 0.0
    rows = [m.rows_per_sequence for m in owners if contract.offered(m, 'rows_per_sequence')]
    if rows and 'heads' in names:            # a head's matrix is passed by its part of the rows
      rows[-1] //= value.shape[names.index('heads')]
    sparse = next((m for m, inside in zip(owners, owners[1:])
                   if contract.offered(m, 'router') and inside is getattr(m, 'experts', None)), None)
    if sparse is not None:
      size = rows[-1] if rows else length.get(path[0], min(length.values()))
      if id(sparse) not in passing:
        passing[id(sparse)] = contract.offered(sparse, 'rows_per_token') or rows_per_token(
            sparse, size, given_shapes, next((m for m in owners if contract.offered(m, 'lent')), None))
      if 'expert' in names:
        share = passing[id(sparse)] / sparse.router.num_experts
        more = sum(contract.offered(m, 'more_rows') for m in (sparse, sparse.router))
        more /= sparse.router.num_experts
      else:
        rows = [passing[id(sparse)] * size]
    part = math.prod(contract.offered(m, 'share_of_rows') or 1 for m in owners)
    if part != 1:
      rows = [part * (rows[-1] if rows else length.get(path[0], min(length.values())))]
    arrays.append(Matrix(tuple(path), names, tuple(value.shape), share, rows[-1] if rows else None,
                         isinstance(value, nnx.Param),
                         _said(owners, owners_said, length.get(path[0], min(length.values()))),
                         _uses(owners), more))
  return arrays + list(_computed(model))


def _computed(model):
  """Yields the Matrix of every matrix that is computed from arrays of the model and multiplies its tokens."""
  for path, part in modules.offering(model, 'computed'):
    array = jax.tree.leaves(nnx.state(part, nnx.Param), is_leaf=lambda v: isinstance(v, nnx.Variable))[0]
    stacked = 'layers' in (array.get_metadata().get('out_sharding') or ())
    for below, shape in part.computed.items():
      names, whole = ('embed', 'mlp'), tuple(shape)
      if stacked:
        names, whole = ('layers', *names), (array.shape[0], *whole)
      yield Matrix((*path, *below), names, whole, 1.0, None, False, uses=_uses(_owners(model, path)))


def _uses(owners):
  """How often a row passes the arrays of the last of `owners`: layers may have them in common."""
  return next((m.uses for m in reversed(owners) if contract.offered(m, 'uses')), 1)


def _said(owners, said, length):
  """What the innermost of `owners` says of its products, at the first of its arrays; then 0. Or None.

  length: tokens of a routing group where no owner has a `group_size`.
  """
  telling = [m for m in owners if contract.offered(m, 'products_per_row') is not None]
  if not telling:
    return None
  first = id(telling[-1]) not in said
  said.add(id(telling[-1]))
  products = telling[-1].products_per_row
  if callable(products):
    products = products(next((m.group_size for m in owners if getattr(m, 'group_size', None)), length))
  return products if first else 0


def _owners(model, path):
  """The modules that the array at `path` is in, outermost first."""
  nested = [model]
  for key in path[:-1]:
    nested.append(nested[-1][key] if isinstance(key, int) else getattr(nested[-1], key))
  return nested


def rows_per_token(sparse, length, given=None, stack=None):
  """Returns how many rows a token makes its experts compute on average: N / S of the training assignment.

  That is k of token choice, the capacity factor of expert choice. Choices that are skipped at random, by a
  schedule or dropped for capacity are counted, and so are the alternatives of `ntlb`. Where a token's
  number of experts varies, the mean that the router expects counts (`assignment.expecting`). The metric
  active_experts measures that mean.

  Args:
    sparse: abstract layer with `router`, `group_size` and `d_model`; its arrays may be stacked over layers.
    length: tokens of a group, where `group_size` is None.
    given:  dict name -> (shape for a token, dtype) of what else routers may read.
    stack:  the stack of the layer, whose layers may have arrays and a memory in common; None = no stack.
  """
  sparse = sparse if stack is None else stack.lent(sparse)
  size = sparse.group_size or length
  graph, arrays = nnx.split(sparse.router)

  def one_layer(value):
    names = value.get_metadata().get('out_sharding')
    # A number has no axes to name, and gets no name when it is stacked.
    stacked = names is not None and ('layers' in names or len(names) < len(value.shape))
    return value.replace(jax.ShapeDtypeStruct(value.shape[1:], value.dtype)) if stacked else value

  def route(arrays, key):
    row = jnp.zeros((1, size), jnp.int32)
    ctx = contract.Context(**contract.numbered(row == 0), key=key, train=True, tokens=jnp.float32(size),
                           step=jnp.zeros((), jnp.int32),
                           given={name: jnp.zeros((1, size, *shape), dtype)
                                  for name, (shape, dtype) in (given or {}).items()})
    router, x = nnx.merge(graph, arrays), jnp.zeros((1, size, sparse.d_model))
    carry = modules.init_carry(router, x) if stack is None else stack.init_carry(x)
    return checked.route(router, x, ctx, carry).assignment

  arrays = jax.tree.map(one_layer, arrays, is_leaf=lambda v: isinstance(v, nnx.Variable))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(route, arrays, key).rows_per_group / size


def lengths(cfg):
  """Returns dict stack name -> positions of one row of a batch, as the source of its data has it."""
  return lookup.source(cfg.data).lengths(cfg.model)


def _given(cfg):
  """Dict name -> (shape for a token, dtype) of what the source of data gives routers to read."""
  batch = pipeline.shapes(lookup.source(cfg.data), 1)
  per_row = {name: (shape[1:], dtype) for name, (shape, dtype) in batch.items() if name.startswith('given/')}
  per_token = {name: (shape[2:], dtype) for name, (shape, dtype) in batch.items() if '_given/' in name}
  return {name.partition('given/')[2]: entry for name, entry in (per_row | per_token).items()}


def parameters(cfg):
  """Returns dict(total, active): parameters of the model, and parameters that a token uses."""
  trained = [m for m in matrices(cfg) if m.trained]
  active = sum(m.size * min(1, m.share * m.uses) for m in trained)
  return dict(total=sum(m.size for m in trained), active=round(active))


def active_per_token(cfg):
  """Returns dict(forward, train, forward_per_row): active FLOPs of the matrix products of the model.

  A product of [a,b] and [b,c] is 2abc. Attention is counted in full, also where a mask hides
  half of it. Capacity (empty or overflowing slots), dispatch, normalisation and activation
  functions are not counted, so that all executors of a model have the same figure.

  forward: per target position; an encoder's work is spread over the targets of its row.
  train:   forward and backward, 3 x forward, of every pass of the target, with the rows that training adds.
    Where the target wants the model of another run beside, its forward is added, once. Rematerialisation
    does no useful work and is left out.
  forward_per_row: of a row of a batch, the "FLOPs per sequence" of the papers.
  Raises UserError if the other run cannot be opened.
  """
  (total, more), target, positions = _per_row(cfg), _target(cfg), lengths(cfg)['decoder']
  beside = _per_row(_beside(cfg, target))[0] if target.run else 0.0
  forward = total / positions
  passes = getattr(target, 'forwards', target.passes)
  train = (1.0 + BACKWARD) * (total + more) / positions * passes + beside / positions
  return dict(forward=forward, train=train, forward_per_row=total)


def _target(cfg):
  """What the model of `cfg` is to predict, a `targets.Target`."""
  return lookup.recipe('target', cfg.get('loss', {}))()


def _beside(cfg, target):
  """The configuration of the model of another run that `target` wants, on the data of `cfg`."""
  try:
    other = copy.deepcopy(record.read(target.run).located(directory.opened(target.run, target.step)))
  except errors.UserError as error:
    raise errors.UserError(f'loss.run={target.run!r}: {error}') from None
  with other.unlocked(), other.ignore_type():
    other.data, other.loss = cfg.data, {}
  return other


def _per_row(cfg):
  """(FLOPs of the forward of one row of a batch, what training adds to them), see `active_per_token`."""
  length, model_matrices = lengths(cfg), matrices(cfg)
  untied = any(m.path[0] == 'head' for m in model_matrices)
  widths = {m.path[:-1]: m.shape[-2] for m in model_matrices if m.path[-1] == 'wo'}    # of the values
  total, more = 0.0, 0.0
  for m in model_matrices:
    crossing = 'cross' in m.path
    stack = _stack(m.path, length)
    memory = 'encoder' if crossing else stack
    rows = length[memory if m.path[-1] in ('wk', 'wv') else stack]
    rows = m.rows or rows
    products = m.size if m.names == ('vocab', 'embed') and not untied else m.multiplied
    total += 2.0 * products * m.share * rows * m.uses
    more += 2.0 * products * m.more * rows * m.uses
    if m.path[-1] == 'wq':
      # Scores and values, each 2 x keys x (heads x width) per query and layer; values may be narrower.
      layers = m.uses * m.size / math.prod(m.shape[-2:])
      keys = length[memory] if crossing else rows
      total += 2.0 * rows * keys * (m.shape[-1] + widths.get(m.path[:-1], m.shape[-1])) * layers
  return total, more


def _stack(path, length):
  """The stack whose tokens pass the array at `path`; what reads a block's states has the block's name."""
  owner = path[1].rpartition('_')[0] if path[0] == modules.READER else path[0]
  return owner if owner in length else 'decoder'
