"""MPOE of a trained bank: matrices of experts become chains of small tensors around one shared centre.

Gao et al. (arXiv:2203.01104) begin with the chain of one dense matrix. A trained bank has E different ones.
Here they are W_e ~ A_e C B_e: C is common, A_e has orthonormal columns and B_e orthonormal rows. The mean of
the bank is the start, then each of the three is fitted in turn while the others stay. A_e and B_e are then
cut into the small tensors of the experts (`experts/mpo.py`).
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import chains
from stmoe.surgery import layout
from stmoe.surgery import sparse

MATRICES = ('wi', 'wo')
CHAIN = ('left', 'central', 'right')     # the tensors of a chain, in this order; left and right are numbered


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, parts: ranges.Count = 5,
            sweeps: ranges.Natural = 4) -> tuple[dict, dict]:
  """Returns (params, changes) with banks of chains of share `keep` of the experts' parameters; see `sparse`.

  Args:
    keep:   the largest bond is as wide as that leaves room for; at 1.0 nothing is decomposed.
    parts:  tensors of a chain, an odd number.
    sweeps: rounds of fitting; 0: all experts are the chain of their mean, which is the paper's start.
  Differs: how different experts come to one centre is ours. Biases, which experts share there, are means.
  """
  if keep == 1.0:
    return params, {}
  layers, changes = sparse.found(config), {}
  for layer in layers:
    changes[f'{layer.where}.experts'] = _bank(layer, config, parts)
  for layer, full in zip(layers, sparse.found(sparse.changed(config, changes))):
    changes[f'{layer.where}.experts']['bond'] = bond(layer, full, params, keep)
  made = aside.Made()
  for layer, new in zip(layers, sparse.found(sparse.changed(config, changes))):
    bank, shapes = layer.owned(params), {path: shape for path, (_, shape) in new.axes('experts').items()}
    experts: dict = {name: bank[name,].mean(0) for name in ('bi', 'bo') if (name,) in bank}
    for name in MATRICES:
      own = {path[1:]: shape for path, shape in shapes.items() if path[0] == name}
      experts[name] = chain(bank[name,], own, sweeps)
    made[(*layer.path, 'experts')] = experts
  return sparse.replaced(params, made), changes


def _bank(layer, config, parts):
  """The fields of the bank of chains, of any bond, in place of the experts of `layer`."""
  section = sparse.section(config, f'{layer.where}.experts')
  if section.name != 'mlp':
    raise errors.UserError(f"{layer.where}.experts are {section.name!r}; chains are made of 'mlp'")
  if parts % 2 == 0:
    raise errors.UserError(f'parts={parts} have no centre; nearest: parts={parts - 1}, {parts + 1}')
  return dict(name='mpo', d_ff=section.d_ff, parts=parts, bond=None,
              activation=section.get('activation', 'relu'), use_bias=section.get('use_bias', False))


def bond(layer: sparse.Layer, full: sparse.Layer, params: dict, keep: float) -> int:
  """Returns the width of the largest bond with which the bank of `full` is at most `keep` of `layer`'s.

  Args:
    full: the same layer with a bank of chains of any bond.
  """
  own = sum(array.size for array in layer.owned(params).values())
  shapes = [shape for _, shape in full.axes('experts').values()]
  size = lambda most: sum(math.prod(shape if len(shape) < 4 else (
      *shape[:-4], min(shape[-4], most), *shape[-3:-1], min(shape[-1], most))) for shape in shapes)
  widest = max(shape[-1] for shape in shapes if len(shape) >= 4)
  fitting = [most for most in range(1, widest + 1) if size(most) <= keep * own]
  if not fitting:
    near = math.ceil(size(1) / own * 100) / 100
    raise errors.UserError(f'keep={keep}: chains of {layer.where} with bonds of 1 are {size(1) / own:.3f} of '
                           f'its experts; nearest: keep={min(near, 1.0):g}')
  return fitting[-1]


def chain(bank: jax.Array, shapes: dict[tuple, tuple], sweeps: int) -> dict:
  """Returns dict(left, central, right) of the chains of matrices [E,D,F]; left and right are dicts by number.

  Args:
    shapes: dict path ('left', m), ('central',), ('right', m) -> [E,d,i,j,d'] or [d,i,j,d'].
  """
  order = sorted(shapes, key=lambda path: (CHAIN.index(path[0]), path[1:]))
  inward, outward = zip(*(shapes[path][-3:-1] for path in order))
  most, middle = max(shapes[path][-4] for path in order), len(order) // 2
  left, centre, right = fit(np.asarray(bank), inward, outward, most, sweeps)
  of_left = jax.vmap(lambda a: _left(a, inward[:middle], outward[:middle], most))(left)
  of_right = jax.vmap(lambda b: _right(b, inward[middle + 1:], outward[middle + 1:], most))(right)
  cores = [*of_left, centre.reshape(shapes['central',]), *of_right]
  made: dict = {}
  for path, core in zip(order, cores):
    # A part may need less than the bond inside of it; the rest is 0.
    layout.put(made, path, jnp.pad(core, [(0, wide - own) for wide, own in zip(shapes[path], core.shape)]))
  return made


def fit(bank: np.ndarray, inward: tuple[int, ...], outward: tuple[int, ...], most: int,
        sweeps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (A [E,a,p], C [p,c,q], B [E,q,b]) of matrices [E,D,F]; a, c, b are pairs (i j) of three parts.

  Each sweep makes the sum of squares of W_e - A_e C B_e smaller, or leaves it.

  Args:
    inward, outward: factors of D and of F; the middle one is the centre's. most: the largest bond.
  """
  middle = len(inward) // 2
  cores = list(map(np.asarray, chains.decompose(jnp.asarray(bank.mean(0)), inward, outward, most)))
  centre = cores[middle]
  left, right = _product(cores[:middle], 0), _product(cores[middle + 1:], -1)      # [a, p], [q, b]
  (left, upper), (right, lower) = np.linalg.qr(left), np.linalg.qr(right.T)
  c = np.einsum('pr,rijs,qs->pijq', upper, centre, lower, optimize=True)
  c = c.reshape(len(c), -1, c.shape[-1])
  a, b = (np.broadcast_to(x, (len(bank), *x.shape)) for x in (left, right.T))
  w = _unfolded(bank, inward, outward, middle)                       # [E, a, c, b]
  for _ in range(sweeps):
    a = _orthogonal(np.einsum('eacb,pcq,eqb->eap', w, c, b, optimize=True))
    b = _orthogonal(np.einsum('eap,pcq,eacb->eqb', a, c, w, optimize=True))
    c = np.einsum('eap,eacb,eqb->pcq', a, w, b, optimize=True) / len(bank)
  return a, c, b


def _orthogonal(x):
  """The matrices of orthonormal rows or columns that go best with x [E,m,n]."""
  u, _, v = np.linalg.svd(x, full_matrices=False)
  return u @ v


def _product(cores, end):
  """The product of a part of a chain [d,i,j,d'], whose other end is 1: [(i j ..), p] or [q, (i j ..)]."""
  whole = np.ones((1, 1), np.float32) if not cores else cores[0]
  for core in cores[1:]:
    whole = np.tensordot(whole, core, 1)
  return whole.reshape((-1, whole.shape[-1]) if end == 0 else (len(whole), -1))


def _unfolded(bank, inward, outward, middle):
  """[E, a, c, b] of matrices [E,D,F]: their factors in the order (i1 j1) (i2 j2) ..., in three parts."""
  parts = len(inward)
  order = [0, *(axis for m in range(1, parts + 1) for axis in (m, parts + m))]
  w = bank.reshape(len(bank), *inward, *outward).transpose(order)
  pairs = [i * j for i, j in zip(inward, outward)]
  return w.reshape(len(bank), math.prod(pairs[:middle]), pairs[middle], -1)


def _left(a, inward, outward, most):
  """The tensors [d,i,j,d'] of a left part a [(i1 j1 ..), p]."""
  if not inward:
    return []
  *cores, last = _split(a, inward, (*outward[:-1], outward[-1] * a.shape[1]), most)
  return [*cores, last.reshape(len(last), inward[-1], outward[-1], a.shape[1])]


def _right(b, inward, outward, most):
  """The tensors [d,i,j,d'] of a right part b [q, (i j ..)]."""
  if not inward:
    return []
  first, *cores = _split(b, (len(b) * inward[0], *inward[1:]), outward, most)
  return [first.reshape(len(b), inward[0], outward[0], -1), *cores]


def _split(x, inward, outward, most):
  """`chains.split` of an array whose entries are in the order (i1 j1) (i2 j2) ..."""
  x = x.reshape([width for pair in zip(inward, outward) for width in pair])
  x = x.transpose([*range(0, x.ndim, 2), *range(1, x.ndim, 2)])
  return chains.split(x.reshape(math.prod(inward), -1), inward, outward, most)
