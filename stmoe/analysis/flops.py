"""Parameters and floating-point operations of a configuration, without building its arrays.

The model is evaluated abstractly; every matrix of it costs 2 * size per token that passes
through it, which its logical axes and its place tell: matrices of a bank of experts are
passed by (edges per token) / E of the tokens, embeddings are looked up, attention adds its
two products with keys and values. A new layer or router needs nothing here.
"""

import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe.core import contract

BACKWARD = 2.0     # both operands of every product need a gradient of the product's own cost


class Matrix(NamedTuple):
  """A parameter: `path` in the model, logical axis `names`, `shape`; `share` of it that one token uses."""
  path: tuple
  names: tuple
  shape: tuple
  share: float

  @property
  def size(self):
    return math.prod(self.shape)

  @property
  def multiplied(self):
    """Whether tokens are multiplied by it: two axes besides stacked layers and experts, no look-up."""
    inner = [n for n in self.names if n not in ('layers', 'expert')]
    return len(inner) == 2 and 'relpos_buckets' not in inner and inner[0] != 'vocab'


def abstract(cfg, scan_layers=True):
  """Returns the model of `cfg` with ShapeDtypeStructs for arrays; `scan_layers` overrides that of `cfg`."""
  fields = dict(cfg.model.to_dict(), scan_layers=scan_layers)
  make = lookup.recipe('model', fields)
  return nnx.eval_shape(lambda: make(blocks=cfg.blocks, rngs=nnx.Rngs(0)))


def matrices(cfg):
  """Returns the list of Matrix of every parameter of the model of `cfg`."""
  params = nnx.state(abstract(cfg), nnx.Param)
  edges = {letter: edges_per_token(cfg, block) for letter, block in cfg.blocks.items() if 'router' in block}
  found = []
  for path, value in nnx.to_flat_state(params):
    names = tuple(value.get_metadata()['out_sharding'])
    share = 1.0
    if 'expert' in names:
      share = edges[_letter(cfg, path)] / value.shape[names.index('expert')]
    found.append(Matrix(tuple(path), names, tuple(value.shape), share))
  return found


def _letter(cfg, path):
  """The letter of the block that the parameter at (stack, 'segments', i, 'blocks', j, ...) is in."""
  stack, _, segment, _, place = path[:5]
  pattern = cfg.model.get(stack) or cfg.model.layers
  return pattern[segment][0][place]


def edges_per_token(cfg, block):
  """Returns how many (token, expert) edges a token has on average: N / S of the training assignment.

  k of token choice, the capacity factor of expert choice; choices that are skipped at
  random or dropped for capacity are counted, and so are the alternatives of `ntlb`.
  """
  size = block.group_size or min(lengths(cfg).values())
  width = cfg.model.d_model
  make = lookup.recipe('router', block.router)
  key = jax.eval_shape(lambda: jax.random.key(0))

  def route(key):
    row = jnp.zeros((1, size), jnp.int32)
    ctx = contract.Context(mask=row == 0, ids=row, positions=row, segments=row + 1, key=key, train=True,
                           step=jnp.zeros((), jnp.int32), tokens=jnp.float32(size))
    router, x = make(width, rngs=nnx.Rngs(0)), jnp.zeros((1, size, width))
    carry = router.init_carry(x) if hasattr(router, 'init_carry') else {}
    return router(x, ctx, carry).assignment

  return jax.eval_shape(route, key).token.shape[1] / size


def lengths(cfg):
  """Returns dict stack name -> positions of one row of a batch."""
  if 'inputs_length' in cfg.data:
    return dict(encoder=cfg.data.inputs_length, decoder=cfg.data.targets_length)
  return dict(decoder=cfg.data.length)


def parameters(cfg):
  """Returns dict(total, active): parameters of the model, and those that one token uses."""
  found = matrices(cfg)
  return dict(total=sum(m.size for m in found), active=round(sum(m.size * m.share for m in found)))


def active_per_token(cfg):
  """Returns dict(forward, train, forward_per_row): active FLOPs of the matrix products of the model.

  A product of [a,b] and [b,c] is 2abc. Attention is counted in full, also where a mask hides
  half of it. Capacity (empty or overflowing slots), dispatch, normalisation and activation
  functions are not counted, so that all executors of a model have the same figure.

  forward: per target position; an encoder's work is spread over the targets of its row.
  train:   forward and backward, 3 x forward; rematerialisation does no useful work and is not in it.
  forward_per_row: of one row of a batch, the "FLOPs per sequence" of the papers.
  """
  length, found = lengths(cfg), matrices(cfg)
  untied = any(m.names == ('embed', 'vocab') for m in found)
  total = 0.0
  for m in found:
    crossing = 'cross' in m.path
    stack = m.path[0] if m.path[0] in length else 'decoder'
    memory = 'encoder' if crossing else stack
    rows = length[memory if m.path[-1] in ('wk', 'wv') else stack]
    if m.multiplied or (m.names == ('vocab', 'embed') and not untied):
      total += 2.0 * m.size * m.share * rows
    if m.path[-1] == 'wq':
      # Scores and values, each 2 x keys x (heads x width) per query and layer.
      layers = m.size / math.prod(m.shape[-2:])
      total += 4.0 * length[stack] * length[memory] * m.shape[-1] * layers
  forward = total / length['decoder']
  return dict(forward=forward, train=(1.0 + BACKWARD) * forward, forward_per_row=total)
