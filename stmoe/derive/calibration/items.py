"""What a calibration can collect of layers: ITEMS of sparse layers with one bank, UNITS of dense layers."""

import typing

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe.core import checked
from stmoe.core.transport import layouts


class Seen:
  """What a sparse layer did with a group of tokens, computed when asked for.

  x:       f32[S,D] what goes into the layer, 0 where there is padding.
  mask:    f32[S] 1 for real tokens.
  weights: f32[S,E] of the experts that compute a token; taken: f32[S,E] 1 for these experts.
  even:    f32[S,E] 1 for the tokens of an expert that `balanced` selects.
  """

  def __init__(self, x, mask, logits, weights, taken, even, bank):
    self.x, self.mask, self.weights, self.taken, self.even = x * mask[:, None], mask, weights, taken, even
    self._logits, self._bank = logits, bank

  def logits(self) -> jax.Array:
    """Returns f32[S,E] of the router, 0 for padding."""
    return self._logits * self.mask[:, None]

  def units(self) -> list[jax.Array]:
    """Returns f32[E*F,D] of every matrix from or to hidden units: the weights of each, of all experts."""
    found = []
    for _, variable in nnx.to_flat_state(nnx.state(self._bank)):
      names = [name for name in variable.get_metadata().get('out_sharding') or () if name != 'layers']
      if sorted(names, key=str) == ['expert', 'expert_embed', 'expert_mlp']:
        width = names.index('expert_embed')
        array = jnp.moveaxis(variable[...], width, -1).astype(jnp.float32)
        found.append(array.reshape(-1, array.shape[-1]))
    return found

  def outputs(self) -> jax.Array:
    """Returns f32[E,S,D]: what every expert makes of every token, 0 for padding."""
    number = self.taken.shape[-1]
    y = self._bank(layouts.Buckets(jnp.broadcast_to(self.x, (number, *self.x.shape)))).x
    return y.astype(jnp.float32) * self.mask[:, None]

  def hidden(self) -> jax.Array:
    """Returns f32[E,S,F]: what enters the last product of every expert, for every token; 0 for padding."""
    number = self.taken.shape[-1]
    entered: list[jax.Array] = []
    self._bank(Recorded(jnp.broadcast_to(self.x, (number, *self.x.shape)), entered))
    if not entered:
      raise errors.UserError(f'{checked.file(self._bank)} has no products of matrices, hence no hidden units')
    return entered[-1].astype(jnp.float32) * self.mask[:, None]


@struct.dataclass
class Recorded(layouts.Buckets):
  """Rows [E,R,D] that note in the list `entered` what enters a product, [E,R,.]."""
  entered: list = struct.field(pytree_node=False)

  def linear(self, w, b=None):
    """Returns rows times w; see `layouts.Buckets`."""
    self.entered.append(self.x)
    return super().linear(w, b)


def _cosines(seen):
  y = seen.outputs()
  length = jnp.linalg.norm(y, axis=-1, keepdims=True)
  y = y / jnp.where(length > 0, length, 1)
  return _summed('isd,jsd->ij', y, y)


def _chosen_cosines(seen):
  """[2]: the sum over tokens of several experts of the mean cosine of two of its experts; their number."""
  y = seen.outputs()                                                 # [E, S, D]
  length = jnp.linalg.norm(y, axis=-1, keepdims=True)
  y = y / jnp.where(length > 0, length, 1) * seen.taken.T[..., None]
  squares = jnp.square(y).sum((0, 2))                                # [S] pairs of an expert with itself
  pairs = jnp.square(y.sum(0)).sum(-1) - squares                     # [S] ordered pairs of two experts
  count = seen.taken.sum(1)
  return jnp.stack([(pairs / jnp.maximum(count * (count - 1), 1)).sum(), (count > 1).sum()])


def _anisotropy(seen):
  """For every token the mean cosine of the weights of two hidden units, mean over matrices; NaN of none."""
  def of_matrix(rows):                                               # [E*F, D]
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    unit, number = rows / jnp.where(length > 0, length, 1), jnp.sum(length > 0)
    return (jnp.square(unit.sum(0)).sum() - number) / jnp.maximum(number * (number - 1), 1)
  found = [of_matrix(rows) for rows in seen.units()]
  return jnp.mean(jnp.stack(found)) * seen.mask.sum() if found else jnp.float32(jnp.nan)


def _first_two(seen):
  first = jax.lax.top_k(seen.logits(), 2)[1]                         # [S, 2]
  both = jax.nn.one_hot(first, seen.taken.shape[-1]).sum(1) * seen.mask[:, None]       # [S, E]
  pairs = _summed('si,sj->ij', both, both)
  return pairs - jnp.diag(jnp.diagonal(pairs))


def _largest(x, selected):
  """[E,.]: the largest entries of x [E,S,.] over the tokens `selected` f32[S,E]; -inf where there is none."""
  return jnp.where(selected.T[..., None] > 0, x, -jnp.inf).max(1)


def balanced(taken: jax.Array, limit: int) -> jax.Array:
  """Returns f32[G,S,E], 1 for the first `limit` tokens of every expert: none has many more than others.

  EAQuant's (arXiv:2506.13329). Args: taken: f32[G,S,E], 1 for the tokens of an expert.

  >>> balanced(jnp.array([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]]), 2).tolist()
  [[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]
  """
  flat = taken.reshape(-1, taken.shape[-1])                          # [G S, E]
  earlier = (jnp.cumsum(flat, 0) - flat).reshape(taken.shape)
  return taken * (earlier < limit)


def _probability_margin(seen):
  first = jax.lax.top_k(jax.nn.softmax(seen.logits()), 2)[0]         # [S, 2]
  return ((first[:, 0] - first[:, 1]) * seen.mask).sum()


def _summed(equation, *arrays):
  return jnp.einsum(equation, *arrays, precision='highest')


def _both_signs(hidden, selected):
  return jnp.stack([_largest(hidden, selected), _largest(-hidden, selected)])


class Reduction(typing.NamedTuple):
  """How parts of an item become one: `groups` of a batch, [G,...] -> [...]; two `batches`, both [...]."""
  groups: typing.Callable[[jax.Array], jax.Array]
  batches: typing.Callable[[np.ndarray, np.ndarray], np.ndarray]


ROWS = 4096                              # most tokens of an item that is made of tokens
BALANCE = 2.0                            # tokens of an expert that `balanced` selects, over an even share
SUM = Reduction(lambda parts: parts.sum(0), np.add)
MOST = Reduction(lambda parts: parts.max(0), np.maximum)
FIRST_GROUP = Reduction(lambda parts: parts[0], lambda first, more: first)
FIRST = Reduction(lambda parts: parts.reshape(-1, parts.shape[-1])[:ROWS],
                  lambda first, more: np.concatenate([first, more])[:ROWS])

# name -> function of Seen that returns a sum over its tokens, or what REDUCED makes one of.
ITEMS = {
    # [E] choices before anything is dropped; the layer's own report.
    'load': None,
    # [] real tokens.
    'tokens': lambda seen: seen.mask.sum(),
    # Of logits: [E,E] sums of products of two; [E] sums of probabilities; [] sum of differences of the two
    # largest probabilities; [E,E] tokens whose two largest are of these two experts, 0 on the diagonal.
    'logit_products': lambda seen: _summed('si,sj->ij', seen.logits(), seen.logits()),
    'probabilities': lambda seen: (jax.nn.softmax(seen.logits()) * seen.mask[:, None]).sum(0),
    'probability_margin': _probability_margin,
    'first_two': _first_two,
    # [E,E] tokens that both experts compute, on the diagonal of one expert; [E] groups that call an expert.
    'coactivation': lambda seen: _summed('si,sj->ij', seen.taken, seen.taken),
    'calls': lambda seen: seen.taken.max(0),
    # Of what an expert computes: [E,D] squares, [E,D,D] products of two entries, [E,D] the largest |x|.
    'input_squares': lambda seen: _summed('se,sd->ed', seen.taken, seen.x * seen.x),
    'input_products': lambda seen: _summed('se,sc,sd->ecd', seen.taken, seen.x, seen.x),
    'largest_inputs': lambda seen: _largest(jnp.broadcast_to(jnp.abs(seen.x), (
        seen.taken.shape[-1], *seen.x.shape)), seen.taken),
    # Of all tokens: [D] the largest |x|; [ROWS,D] the first tokens, 0 for padding.
    'largest_input': lambda seen: jnp.abs(seen.x).max(0),
    'first_inputs': lambda seen: seen.x,
    # Of what enters an expert's last product, of what the expert computes: [E,F] squares, [E,F,F] products;
    # [2,E,F] the largest h and -h, there, of the tokens that `balanced` selects, and of the first group's.
    'own_hidden_squares': lambda seen: _summed('se,esf->ef', seen.taken, jnp.square(seen.hidden())),
    'own_hidden_products': lambda seen: _summed('se,esf,esh->efh', seen.taken, seen.hidden(), seen.hidden()),
    'largest_hidden': lambda seen: _both_signs(seen.hidden(), seen.taken),
    'even_hidden': lambda seen: _both_signs(seen.hidden(), seen.even),
    'first_hidden': lambda seen: _both_signs(seen.hidden(), jnp.broadcast_to(
        seen.mask[:, None], seen.taken.shape)),
    # The same of all tokens: [E,F] sums and squares, [E,F,F] products of units of expert 0 and each expert.
    'hidden_sums': lambda seen: seen.hidden().sum(1),
    'hidden_squares': lambda seen: jnp.square(seen.hidden()).sum(1),
    'hidden_products': lambda seen: _summed('sf,esh->efh', seen.hidden()[0], seen.hidden()),
    # Of outputs: [E] weight times length, of what an expert computes; of all experts on all tokens [E,D]
    # sums, [E,E] inner products, [E,E] cosines; [2] cosines of a token's own experts, and such tokens.
    'weighted_norms': lambda seen: _summed(
        'se,es->e', seen.weights * seen.taken, jnp.linalg.norm(seen.outputs(), axis=-1)),
    'output_sums': lambda seen: seen.outputs().sum(1),
    'output_products': lambda seen: _summed('isd,jsd->ij', seen.outputs(), seen.outputs()),
    'output_cosines': _cosines,
    'chosen_cosines': _chosen_cosines,
    # Of weights: [] the mean cosine of two hidden units, as often as there are tokens.
    'anisotropy': _anisotropy,
}
# Items that do not add up over groups and batches.
REDUCED = dict(largest_input=MOST, largest_inputs=MOST, largest_hidden=MOST, even_hidden=MOST,
               first_hidden=FIRST_GROUP, first_inputs=FIRST)
OF_EDGES = {'coactivation', 'calls', 'input_squares', 'input_products', 'own_hidden_squares',
            'own_hidden_products', 'weighted_norms', 'chosen_cosines', 'largest_inputs', 'largest_hidden',
            'even_hidden'}
OF_LOGITS = {'probabilities', 'logit_products', 'first_two', 'probability_margin'}
# Of dense layers, from their hidden units f32[B,T,F], 0 for padding, and bool[B,T] real tokens: [F] sums of
# absolute values, [] real tokens.
UNITS = {
    'unit_sizes': lambda hidden, mask: jnp.abs(hidden).sum((0, 1)),
    'unit_tokens': lambda hidden, mask: mask.sum(dtype=jnp.float32),
}


def reduction(name: str) -> Reduction:
  """Returns how parts of item `name` become one."""
  return REDUCED.get(name, SUM)
