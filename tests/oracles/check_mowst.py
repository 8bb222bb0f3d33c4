"""Checks of Mowst: dispersions, graph networks, the losses of all turns with their gradients, and answers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import contract
from stmoe.core.units import mixture
from stmoe.models import mowst
from stmoe.parts import graph as graphs
from stmoe.targets import mowst as target

KINDS = dict(MLP='mlp', GCN='gcn', SAGE='sage', Sage='sage', GIN='gin')
# The reference's names of a convolution's arrays -> ours, and whether torch has a matrix [out,in].
ARRAYS = {
    'mlp': {'weight': (('linear', 'w'), True), 'bias': (('linear', 'b'), False)},
    'gcn': {'lin.weight': (('linear', 'w'), True), 'bias': (('b',), False)},
    'sage': {'lin_l.weight': (('neighbours', 'w'), True), 'lin_l.bias': (('neighbours', 'b'), False),
             'lin_r.weight': (('own', 'w'), True)},
}


def _names(kind, num_layers, batch_norm):
  """Yields (the reference's name, our path, whether it is a matrix) of all arrays of a network."""
  held = 'lins' if kind == 'mlp' else 'convs'
  for i in range(num_layers):
    if kind == 'gin':
      for name, path, turn in _names('mlp', num_layers, batch_norm):
        yield f'{held}.{i}.nn.{name}', ('convolutions', i, 'network', *path), turn
      continue
    for name, (path, turn) in ARRAYS[kind].items():
      yield f'{held}.{i}.{name}', ('convolutions', i, *path), turn
  for i in range(num_layers - 1 if batch_norm else 0):
    for name, ours in dict(weight='scale', bias='bias', running_mean='mean', running_var='variance').items():
      yield f'bns.{i}.{name}', ('norms', i, ours), False


def _at(network, path):
  for key in path:
    network = network[key] if isinstance(key, int) else getattr(network, key)
  return network


def _load(case, network, names, *prefixes):
  """Writes the arrays of a case into a network; running statistics that the case has not stay as they are."""
  for name, path, turn in names:
    found = [prefix + name for prefix in prefixes if prefix + name in case]
    assert found or name.rpartition('.')[2].startswith('running'), name
    if found:
      array, variable = case[found[0]], _at(network, path)
      array = array.T if turn else array
      assert variable.shape == array.shape, (name, variable.shape, array.shape)
      variable[...] = jnp.asarray(array)


def _gradients(case, grads, names, prefix):
  """Compares the gradients that the case has of a network; ours are in float64.

  The exact gradient of a bias before a batch norm is 0. What the case has there is the reference's rounding,
  which its matrix before that norm has, too.
  """
  ours = {name: np.asarray(_at(grads, path)[...]) for name, path, _ in names if prefix + name in case}
  matrices = {name for name, _, turn in names if turn}
  turned = {name: array.T if name in matrices else array for name, array in ours.items()}
  largest = max(np.abs(array).max() for array in ours.values())
  for name, array in turned.items():
    expected, bias = case[prefix + name], f'{name.rpartition(".")[0].removesuffix(".lin")}.bias'
    still = bias in ours and np.abs(ours[bias]).max() < 1e-9 * largest
    rounding = np.abs(case[prefix + bias]).max() if still else 0.0
    assert rounding < 1e-3 * largest
    np.testing.assert_allclose(array, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max() + rounding,
                               err_msg=prefix + name)           # the case: gradients rtol 1e-3


def _graph(case):
  pairs = np.argwhere(case['adjacency'].T).astype(np.int32)          # from and to: sums are over columns
  return graphs.Graph(jnp.asarray(pairs)[None], jnp.ones((1, len(pairs))))


def _context(nodes, train):
  return contract.Context(**contract.numbered(jnp.ones((1, nodes), bool)), step=jnp.int32(0),
                          tokens=jnp.float32(nodes), train=train)


def _exact(run, *args):
  """`run` of the arguments, all in float64."""
  wide = lambda x: np.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else x.dtype)
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, jax.jit(run)(*jax.tree.map(wide, args)))


def _fields(config):
  return dict(width=config['hidden'], num_layers=config['layers'], dropout_rate=config['dropout'],
              batch_norm=config.get('batch_norm', True))


def dispersion(case):
  for end, logits in (('', case['logits']), ('_of_probs', jax.nn.softmax(case['logits']))):
    found = mowst.dispersion(jnp.asarray(logits))
    for i, name in enumerate(('variance', 'entropy')):
      case.assert_close(name + end, found[:, i:i + 1])
  assert not np.any(jax.grad(lambda x: mowst.dispersion(x).sum())(jnp.asarray(case['logits'])))


def expert(case):
  c, kind = case.config, case.option('kind', KINDS)
  make = lookup.recipe('network', dict(name=kind))
  network = make(c['Din'], c['C'], **_fields(c), name='network', rngs=nnx.Rngs(0))
  names = list(_names(kind, c['layers'], c.get('batch_norm', True)))
  _load(case, network, names, 'w.', 'b.')
  for name in case.names('b.'):
    if name.endswith('eps'):
      assert not case[name].any()                                    # ours has none
  graph, ctx = _graph(case), _context(c['N'], case.option('train', {True: True, False: False}))

  def run(network, x):
    def loss(network, x):
      y = network(x[None], graph, ctx)[0][0]
      return jnp.sum(y * case['upstream']), y
    return jax.grad(loss, argnums=(0, 1), has_aux=True)(network, x)

  (grads, dx), y = _exact(run, network, case['x'])
  case.assert_close('out', y), case.assert_close('grad_x', dx)
  _gradients(case, grads, names, 'g.')


def training_loss(case):
  c = case.config
  weak, strong = (case.option(name, KINDS) for name in ('weak', 'strong'))
  gate = case.option('gate_input', {'dispersion': 'dispersion', 'dispersion + features': 'features'})
  turn = case.option('turn', dict(weak_turn=('weak', 'gate'), strong_turn=('strong',),
                                  joint=('weak', 'gate', 'strong')))
  experts = mowst.Experts(c['Din'], c['C'], weak, strong, gate, _fields(c), rngs=nnx.Rngs(0))
  parts = dict(weak=(experts.weak, weak), strong=(experts.strong, strong),
               gate=(experts.gate.network, 'mlp'))
  names = {part: list(_names(kind, c['layers'], _fields(c)['batch_norm']))
           for part, (_, kind) in parts.items()}
  for part, (network, _) in parts.items():
    _load(case, network, names[part], f'w.{part}.', f'b.{part}.')
  graph, ctx = _graph(case), _context(c['N'], True)
  judged = target.Mowst(mixing=case.option('loss', {name: name for name in target.LOSSES}))
  batch = dict(labels=jnp.asarray(case['y'])[None], weights=jnp.asarray(case['train_mask'])[None])

  def run(experts, x):
    def loss(experts):
      logits, confidence, _ = experts(x, graph, ctx)
      weights = mowst.apart(confidence)
      outputs = mixture.Mixture(logits, weights, weights)
      return judged.loss(outputs, batch, judged.counts(batch))[0], outputs
    return jax.value_and_grad(loss, has_aux=True)(experts)

  (loss, outputs), grads = _exact(run, experts, case['x'][None])
  for i, name in enumerate(('weak', 'strong')):
    case.assert_close(f'logits_{name}', outputs.logits[0, :, i])
    if f'nll_{name}' in case:
      each = target.likelihoods(outputs.logits, batch['labels'])[0, :, i]
      case.assert_close(f'nll_{name}', each[np.asarray(case['train_mask'], bool)])
  case.assert_close('dispersion', mowst.dispersion(outputs.logits[0, :, 0]))
  case.assert_close('confidence', outputs.weights[0, :, :1])
  case.assert_close('loss', loss)
  in_turn = dict(weak=grads.weak, strong=grads.strong, gate=grads.gate.network)
  for part in turn:                                                  # groups of parameters take turns
    _gradients(case, in_turn[part], names[part], f'g.{part}.')


def inference(case):
  c = case.config
  logits = jnp.log(jnp.stack([case['p_weak'], case['p_strong']], axis=1))          # [N, 2, C]
  confidence, labels = jnp.asarray(case['confidence'])[:, 0], jnp.asarray(case['y'])
  uniform = jnp.asarray(case['uniform'])[..., 0]
  assert len(uniform) == c['m_times']
  share = mowst.answered(confidence, uniform)
  outputs = mixture.Mixture(logits, mowst.apart(confidence), mowst.apart(share))
  cuts = [c['N'] // 3, 2 * c['N'] // 3]
  thirds = lambda x: np.array([part.mean() for part in np.split(np.asarray(x), cuts)])
  case.assert_close('acc_multi', thirds(target.drawn_right(outputs, labels)))
  case.assert_close('acc_joint', thirds(target.mixed_right(outputs, labels)))
  case.assert_close('weak_share_multi', jnp.mean(share))
  case.assert_close('weak_share_joint', jnp.mean(confidence))
