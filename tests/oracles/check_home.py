"""Checks of mixtures for several tasks (MMoE, CGC, PLE) and of areas under the curve, in float64."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import targets
from stmoe.targets import binary


def multi_task(case):
  c, places = case.config, _places(case)
  target = binary.Binary(task_weights=tuple(case['task_weight'].tolist()))
  with jax.enable_x64(True):
    graphdef, params = nnx.split(_model(case), nnx.Param)
    weights = jax.tree.map(lambda a: np.full(a.shape, np.nan), nnx.to_pure_dict(params))
    for name, (path, index) in places.items():
      _at(weights, path)[index] = case[name].T
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(weights)), 'arrays that no case has'
    batch = dict(features=jnp.asarray(case['x']), values=jnp.asarray(case['labels']),
                 weights=jnp.asarray(case['valid'], jnp.float64))

    def loss(weights):
      logits, _ = nnx.merge(graphdef, weights)(batch)
      apart = [binary.Binary(task_weights=np.eye(c['tasks'])[t].tolist()) for t in range(c['tasks'])]
      total, *each = (t.loss(logits, batch, t.counts(batch))[0] for t in (target, *apart))
      return total, (logits, jnp.stack(each))
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (logits, each)), grads = jax.device_get(run(jax.tree.map(jnp.asarray, weights)))
    probability = jax.device_get(jax.nn.sigmoid(logits))
  case.assert_close('probability', probability)
  case.assert_close('task_loss', each), case.assert_close('loss', total)
  for name in case.names('grad_'):
    if name.removeprefix('grad_') not in places:
      assert not case[name].any() and c['experts'] == 1 and case[name.removeprefix('grad_')].shape[0] == 1
      continue                           # a single expert weighs 1 and has no gate here
    path, index = places[name.removeprefix('grad_')]
    case.assert_close(name, _at(grads, path)[index].T)


def _model(case):
  c = case.config
  of_ple = dict(name='ple', specific=c['specific'], shared=c['shared'], num_levels=c['levels'])
  mixer = case.option('model', dict(mmoe=dict(name='mmoe', num_experts=c['experts']), cgc=of_ple, ple=of_ple))
  return lookup.recipe('model', dict(
      name='multi_task', num_features=c['D'], num_outputs=c['tasks'], d_model=c['H'], mixer=mixer,
      tower=(c['tower'],)))(rngs=nnx.Rngs(0))


def _places(case):
  """Dict name of a weight of the reference -> (path of our array, place in it); both are transposed."""
  c, found = case.config, {}
  for task in range(c['tasks']):
    for layer, name in enumerate(('hidden', 'out')):
      found |= {f'tower{task}_{name}_{end}': (('head', task, end, layer), np.s_[:]) for end in 'wb'}
  level = lambda j, *rest: ('mixer', 'levels', j, *rest)
  if c['model'] == 'mmoe':
    found |= {f'expert{e}_{end}': (level(0, 'experts', end, 0), e)
              for e in range(c['experts']) for end in 'wb'}
    gates = range(c['tasks']) if c['experts'] > 1 else ()
    return found | {f'gate{t}_w': (level(0, 'gates', f'task_{t}', 'w'), np.s_[:]) for t in gates}
  banks = [(f'task{t}', c['specific']) for t in range(c['tasks'])] + [('shared', c['shared'])]
  names = [f'{bank}_expert{e}' for bank, number in banks for e in range(number)]
  for j in range(c['levels']):
    found |= {f'l{j}_{name}_{end}': (level(j, 'experts', end, 0), e)
              for e, name in enumerate(names) for end in 'wb'}
    found |= {f'l{j}_gate{t}_w': (level(j, 'gates', f'task_{t}', 'w'), np.s_[:]) for t in range(c['tasks'])}
    if j < c['levels'] - 1:
      found[f'l{j}_gate_shared_w'] = level(j, 'gates', 'shared', 'w'), np.s_[:]
  return found


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def group_auc(case):
  scores, yes, group = case['score'][:, None], case['label'][:, None].astype(float), case['user']
  one = np.ones(1)
  rows = dict(scores=scores, yes=yes, no=1 - yes, group=group)
  sums = dict(ce=one, right=one, each=one * len(scores))
  found = binary.Binary().metrics(sums | {name: targets.Rows(array) for name, array in rows.items()})
  for name in ('auc', 'gauc', 'uauc'):
    case.assert_close(name, found[f'eval/{name}'])
  users, _ = binary.areas(scores[:, 0], yes[:, 0], 1 - yes[:, 0], group)
  case.assert_close('users_used', len(users))
