"""Calibration: what a pass of a run over its own training data says of routers and experts.

ITEMS lists what can be collected of every sparse layer. All items are sums over the tokens of the pass, which
is an evaluation: without noise, at its capacity. Batches add up on the host in float64. So memory does not
grow with their number, and the sums are the same in batches of any size and on any devices. The sums are kept
in the folder `calibration` of the run, sealed as caches of data are. Their key is made of checkpoint, data
and length. Items in REDUCED are no sums: they are maxima over tokens, or the first tokens.

SLOPES is an item of parameters, not of layers: the path 'decoder/layers/1/layer/experts/wi' is its key. It is
the sum of theta dL/dtheta over all axes of a parameter but experts, hidden units and heads (AXES). L is the
run's own loss, summed over tokens. For a run that is distilled, L is the loss of its distillation.
"""

from collections.abc import Sequence
import copy
import hashlib
import json
import pathlib

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import files
from stmoe import modules
from stmoe import targets
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.data import batches as pipeline
from stmoe.data import store
from stmoe.hosts import distributed
from stmoe.routers import wrappers
from stmoe.surgery import layout
from stmoe.train import beside
from stmoe.train import check
from stmoe.train import state as states

FOLDER, LARGEST = 'calibration', 1 << 40


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


def _first_two(seen):
  first = jax.lax.top_k(seen.logits(), 2)[1]                         # [S, 2]
  both = jax.nn.one_hot(first, seen.taken.shape[-1]).sum(1) * seen.mask[:, None]       # [S, E]
  pairs = _summed('si,sj->ij', both, both)
  return pairs - jnp.diag(jnp.diagonal(pairs))


def _largest(x, selected):
  """[E,.]: the largest entries of x [E,S,.] over the tokens `selected` f32[S,E]; -inf where there is none."""
  return jnp.where(selected.T[..., None] > 0, x, -jnp.inf).max(1)


def balanced(taken: jax.Array, mask: jax.Array, limit: int) -> jax.Array:
  """Returns f32[G,S,E], 1 for the first `limit` tokens of every expert: none has many more than others.

  An expert without a token has all tokens of the first group (EAQuant, arXiv:2506.13329).

  Args:
    taken: f32[G,S,E], 1 for the tokens of an expert; mask: f32[G,S], 1 for real tokens.

  >>> balanced(jnp.array([[[1.0, 0.0]] * 3]), jnp.array([[1.0, 1.0, 0.0]]), 2).tolist()
  [[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]
  """
  flat = taken.reshape(-1, taken.shape[-1])                          # [G S, E]
  earlier = (jnp.cumsum(flat, 0) - flat).reshape(taken.shape)
  first = jnp.zeros_like(taken).at[0].set(mask[0][:, None])
  return jnp.where(flat.sum(0) > 0, taken * (earlier < limit), first)


def _probability_margin(seen):
  first = jax.lax.top_k(jax.nn.softmax(seen.logits()), 2)[0]         # [S, 2]
  return ((first[:, 0] - first[:, 1]) * seen.mask).sum()


def _summed(equation, *arrays):
  return jnp.einsum(equation, *arrays, precision='highest')


def _both_signs(hidden, selected):
  return jnp.stack([_largest(hidden, selected), _largest(-hidden, selected)])


# name -> function of Seen that returns a sum over its tokens.
ITEMS = {
    # [E] choices before anything is dropped; the layer's own report.
    'load': None,
    # [E,E] sums of products of two logits.
    'logit_products': lambda seen: _summed('si,sj->ij', seen.logits(), seen.logits()),
    # [E,E] tokens that both experts compute; on the diagonal, tokens of one expert.
    'coactivation': lambda seen: _summed('si,sj->ij', seen.taken, seen.taken),
    # [E,E] tokens whose two largest logits are of these two experts; 0 on the diagonal.
    'first_two': _first_two,
    # [E] groups of tokens of which an expert computes at least one.
    'calls': lambda seen: seen.taken.max(0),
    # [E,D] and [E,D,D] second moments of what an expert computes: squares, and products of two entries.
    'input_squares': lambda seen: _summed('se,sd->ed', seen.taken, seen.x * seen.x),
    'input_products': lambda seen: _summed('se,sc,sd->ecd', seen.taken, seen.x, seen.x),
    # [E,F] and [E,F,F] the same of what enters an expert's last product.
    'own_hidden_squares': lambda seen: _summed('se,esf->ef', seen.taken, jnp.square(seen.hidden())),
    'own_hidden_products': lambda seen: _summed('se,esf,esh->efh', seen.taken, seen.hidden(), seen.hidden()),
    # [E] sums of weight times length of output, of what an expert computes.
    'weighted_norms': lambda seen: _summed(
        'se,es->e', seen.weights * seen.taken, jnp.linalg.norm(seen.outputs(), axis=-1)),
    # Of outputs of all experts on all tokens: [E,D] sums, [E,E] inner products, [E,E] cosines.
    'output_sums': lambda seen: seen.outputs().sum(1),
    'output_products': lambda seen: _summed('isd,jsd->ij', seen.outputs(), seen.outputs()),
    'output_cosines': _cosines,
    # [2] of outputs of a token's own experts; [] sum of differences of the two largest probabilities.
    'chosen_cosines': _chosen_cosines,
    'probability_margin': _probability_margin,
    # [] real tokens; of hidden units, what enters the last product, on all tokens: [E,F] sums and squares,
    # [E,F,F] products of the units of expert 0 with the units of each expert.
    'tokens': lambda seen: seen.mask.sum(),
    # [E] sums of probabilities.
    'probabilities': lambda seen: (jax.nn.softmax(seen.logits()) * seen.mask[:, None]).sum(0),
    # Largest |x|: [D] of all tokens, [E,D] of what an expert computes.
    'largest_input': lambda seen: jnp.abs(seen.x).max(0),
    'largest_inputs': lambda seen: _largest(jnp.broadcast_to(jnp.abs(seen.x), (
        seen.taken.shape[-1], *seen.x.shape)), seen.taken),
    # [2,E,F] largest h and -h of what an expert computes, and of the tokens that `balanced` selects.
    'largest_hidden': lambda seen: _both_signs(seen.hidden(), seen.taken),
    'balanced_hidden': lambda seen: _both_signs(seen.hidden(), seen.even),
    # [ROWS,D] the first tokens, 0 for padding.
    'first_inputs': lambda seen: seen.x,
    'hidden_sums': lambda seen: seen.hidden().sum(1),
    'hidden_squares': lambda seen: jnp.square(seen.hidden()).sum(1),
    'hidden_products': lambda seen: _summed('sf,esh->efh', seen.hidden()[0], seen.hidden()),
}
ROWS = 4096                              # most tokens of an item that is made of tokens
BALANCE = 2.0                            # tokens of an expert that `balanced` selects, over an even share
# How parts [N,...] of an item become one, of groups and of batches; of other items they add up.
REDUCED = dict.fromkeys(('largest_input', 'largest_inputs', 'largest_hidden', 'balanced_hidden'), (
    lambda parts: parts.max(0))) | dict(
        first_inputs=lambda parts: parts.reshape(-1, parts.shape[-1])[:ROWS])
# Of dense layers, from their hidden units f32[B,T,F], 0 for padding, and bool[B,T] real tokens: [F] sums of
# absolute values, [] real tokens.
UNITS = {
    'unit_sizes': lambda hidden, mask: jnp.abs(hidden).sum((0, 1)),
    'unit_tokens': lambda hidden, mask: mask.sum(dtype=jnp.float32),
}
OF_EDGES = {'coactivation', 'calls', 'input_squares', 'input_products', 'own_hidden_squares',
            'own_hidden_products', 'weighted_norms', 'chosen_cosines', 'largest_inputs', 'largest_hidden',
            'balanced_hidden'}
SLOPES, AXES = 'slopes', ('layers', 'expert', 'expert_mlp', 'joined_kv')
OF_LOGITS = {'probabilities', 'logit_products', 'first_two', 'probability_margin'}


class Watch(wrappers.Wrapper):
  """The router `inner`, which also collects `names` of ITEMS into Aux.records, arrays [G,...] of every group.

  bank: the layer's experts.
  """

  def __init__(self, inner, bank, names):
    self.inner, self.bank, self.names = inner, bank, names
    self.num_experts = inner.num_experts

  def __call__(self, x, ctx, carry):
    """Returns Routed for x [G,S,D]."""
    routed = checked.route(self.inner, x, ctx, carry)
    items = {name: ITEMS[name] for name in self.names if ITEMS[name]}
    logits = self._logits(x, ctx, items)
    weights, taken = self._edges(routed.assignment, items, logits.shape)
    bank, mask = self.bank, ctx.mask.astype(jnp.float32)
    k, share = contract.offered(self.inner, 'k') or 1, BALANCE / self.num_experts
    even = balanced(taken, mask, int(k * share * x.shape[1]))

    def sums_of(group):
      seen = Seen(*group, bank)
      return {name: item(seen) for name, item in items.items()}
    # One group after the other: the outputs of all experts are large.
    sums = jax.lax.map(sums_of, (x.astype(jnp.float32), mask, logits, weights, taken, even))
    return routed.replace(aux=routed.aux.replace(records=routed.aux.records | sums))

  def _logits(self, x, ctx, items):
    """f32[G,S,E]; 0 for a router without logits, where nobody asks for them."""
    logits = contract.offered(self.inner, 'logits')
    if logits is None:
      if OF_LOGITS & {*items}:
        raise errors.UserError(f'{checked.file(self.inner)} offers no logits, by which experts are compared')
      return jnp.zeros((*x.shape[:2], self.num_experts))
    return logits(x, ctx)[..., :self.num_experts]

  def _edges(self, a, items, shape):
    """(f32[G,S,E] weights, f32[G,S,E] 1 where an expert computes a token); `shape` is G, S, E."""
    zeros = jnp.zeros(shape)
    if isinstance(a, assignment.SoftAssignment):
      if OF_EDGES & {*items}:
        raise errors.UserError('a router that mixes all tokens does not say which tokens an expert computes')
      return zeros, zeros
    live = assignment.live(a)                                        # [G, N]
    at = (jnp.arange(shape[0])[:, None], a.token, a.expert)          # out of bounds: dead, virtual edges
    return (zeros.at[at].add(jnp.where(live, a.weight, 0), mode='drop'),
            zeros.at[at].max(live.astype(jnp.float32), mode='drop'))


class Units(nnx.Module):
  """The dense `layer` of a block, which also collects `names` of UNITS into Aux.records, arrays [1,...]."""

  def __init__(self, layer, names):
    self.layer, self.names = layer, names

  def __call__(self, x, ctx, carry):
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y, _, carry = self.layer(x, ctx, carry)
    hidden = jnp.where(ctx.mask[..., None], self.layer.hidden(x).astype(jnp.float32), 0)
    records = {name: UNITS[name](hidden, ctx.mask)[None] for name in self.names}
    return y, contract.Aux(losses={}, load=jnp.zeros(0), metrics={}, records=records), carry


def watched(model: nnx.Module, names: Sequence[str]) -> nnx.Module:
  """Returns a copy of `model`, with the same arrays, whose layers collect `names`.

  Sparse layers of one bank collect those of ITEMS, dense layers of blocks those of UNITS.
  """
  model = nnx.merge(*nnx.split(model))
  units, items = tuple(n for n in names if n in UNITS), tuple(n for n in names if n in ITEMS)
  for owner in modules.sparse(model) if items else ():
    if callable(getattr(owner, 'experts', None)):
      owner.router = Watch(owner.router, owner.experts, items)
  for _, block in list(modules.offering(model, 'layer')) if units else ():
    if 'layer' in vars(block) and hasattr(block.layer, 'hidden'):
      block.layer = Units(block.layer, units)
  return model


class Calibration:
  """Collects when it is called: calibration('load', ...) -> dict layer or path -> dict name -> f64[...].

  Args:
    run:     directory of the run, in which results are kept.
    cfg:     the run's configuration; the first `batches` training batches of its data are used.
    plan:    the Blueprint; state: the training state of the checkpoint with digest `digest`.
    source:  gives the opened data when called without arguments, and of another configuration when called
      with that.
    say:     called with lines of text.
  """

  def __init__(self, run, cfg, plan, state, digest, batches, source, say):
    self._folder, self._cfg, self._plan, self._state = pathlib.Path(run) / FOLDER, cfg, plan, state
    self._digest, self._batches, self._source, self._say = digest, batches, source, say

  def __call__(self, *names: str, data: dict | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Returns dict layer -> dict name -> f64[...]; runs over the data for names that are not kept yet.

    data: dict of fields of section `data` with other values: these data are looked at instead.
    """
    if data is not None:
      return self._of(data)(*names)
    batches = pipeline.train_iterator(self._cfg, opened=self._source())
    position = batches.get_state()
    batches.close()
    paths = {name: store.named(self._folder, name, self.key(position, name)) for name in names}
    absent = [name for name, path in paths.items() if not path.is_dir()]
    fresh = self._collected(absent) if absent else {}
    by_layer: dict[str, dict] = {}
    for name, path in paths.items():
      store.kept(path, lambda folder, name=name: _write(
          folder, (fresh if name in fresh else self._collected([name]))[name]))
      for layer, value in files.read_arrays(path / 'sums.npz', LARGEST).items():
        by_layer.setdefault(layer, {})[name] = value
    return by_layer

  def _of(self, data):
    """The Calibration of the same model on other data."""
    other, cfg = copy.copy(self), copy.deepcopy(self._cfg)
    with cfg.unlocked():
      cfg.data.update(data)
    other._cfg, other._source = cfg, lambda: self._source(cfg)
    return other

  def key(self, position: dict, name: str = '') -> str:
    """Returns the digest of what item `name` depends on; `position` is that of the data's beginning."""
    c = self._cfg.to_dict()
    content = [self._digest, position, self._batches, c['seed'], c['train']['batch_size'], c['model'],
            c['blocks'], {key: value for key, value in c['data'].items() if key != 'cache_dir'}]
    content += [c['loss'], self._completed().meta] if name == SLOPES else []
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

  def _completed(self):
    """What completes batches by the outputs of another run that the loss wants, see `beside.opened`."""
    return beside.opened(self._plan, self._source().info()['vocab'])

  def _collected(self, names):
    """Dict name -> dict layer -> f64[...]: the pass over the data."""
    cfg, plan = self._cfg, self._plan
    sums = jax.jit(lambda params, routers, batch, key: _sums(plan, params, routers, batch, key, names),
                   out_shardings=distributed.everywhere(plan.mesh))
    shard = distributed.shard(plan.mesh, cfg.train.batch_size)
    data = pipeline.train_iterator(cfg, *shard, self._source())
    complete = self._completed() if SLOPES in names else beside.Alone()
    total, key = None, states.fold(cfg.seed, 'calibrate')
    self._say(f'calibrating on {self._batches} batches: {", ".join(names)}')
    for number in range(self._batches):
      batch = complete(check.place(next(data), plan.mesh))
      part = sums(self._state['params'], self._state['router_state'], batch, jax.random.fold_in(key, number))
      part = jax.tree.map(np.float64, jax.device_get(part))
      total = part if total is None else {name: jax.tree.map(_joined(name), total[name], part[name])
                                          for name in part}
    data.close()
    return total


def _reduction(name):
  return REDUCED.get(name, lambda parts: parts.sum(0))


def _joined(name):
  """The function that makes one of an item's values of two parts of the pass."""
  rows = name == 'first_inputs'
  return lambda a, b: _reduction(name)(np.concatenate([a, b])[None] if rows else np.stack([a, b]))


def _sums(plan, params, routers, batch, key, names):
  """Dict name -> dict layer -> f32[...] of one batch."""
  of_layers = [name for name in names if name != SLOPES]
  slopes = {SLOPES: _slopes(plan, params, routers, batch, key)} if SLOPES in names else {}
  if not of_layers:
    return slopes
  _, aux = watched(plan.model(params, routers), of_layers)(batch, key=key, train=False)
  records = {name: {layer: _reduction(name)(a.records[name]) for layer, a in aux.items() if name in a.records}
             for name in of_layers}
  return slopes | {name: {layer: a.load for layer, a in aux.items()} if name == 'load' else records[name]
                   for name in of_layers}


def _slopes(plan, params, routers, batch, key):
  """Dict path -> f32[...] of one batch: see SLOPES.

  theta dL/dtheta is the derivative to a gate of 1 that multiplies theta. A gate is common to all that is
  summed, so no gradient of all parameters is kept.
  """
  names = axes.names_of(nnx.state(plan.model(plan.shapes['params'], plan.shapes['router_state']), nnx.Param))
  keeps = lambda names: {*names} & {'expert_mlp', 'joined_kv'}
  cut = lambda names, a: [n if keeps(names) and name in AXES else 1 for n, name in zip(a.shape, names)]
  gates = jax.tree.map(lambda names, a: jnp.ones(cut(names, a)), names, params, is_leaf=axes.is_names)

  def loss(gates):
    model = plan.model(jax.tree.map(jnp.multiply, params, gates), routers)
    outputs, _ = targets.predict(plan.target, model, batch, key=key, train=False)
    if plan.target.passes > 1:
      outputs = jax.tree.map(lambda x: jnp.stack([x] * plan.target.passes), outputs)
    counts = jax.tree.map(jnp.ones_like, targets.counts(plan.target, model, batch))
    return plan.target.loss(outputs, batch, counts)[0]
  slopes, found = layout.numbered(jax.grad(loss)(gates)), {}
  for path, slope in jax.tree.leaves_with_path(slopes):
    if slope.size > 1:
      found['/'.join(str(entry.key) for entry in path)] = slope.squeeze()
  return found


def _write(folder, layers):
  np.savez(folder / 'sums.npz', **layers)
  return dict(layers=sorted(layers))
