"""Read-ME: experts are the units of a dense layer that a domain uses most (arXiv:2410.19123, unverified).

There is an expert for each domain: a file of `data.files`, or a task of `data.mixture`. Its units are
those with the largest mean absolute activation there. A small network on token ids chooses one expert for
all layers (`layers/read_me.py`). The configuration becomes the paper's: of three turns one is the router's
and two are everything else's.
"""

from flax import nnx
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import dense
from stmoe.surgery import layout
from stmoe.surgery import sparse

TURNS = 3                                # of as many steps each: router, rest, rest


def factorise(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
              share: ranges.PartOf1 = 0.5, width: ranges.Count = 64, heads: ranges.Natural = 4,
              depth: ranges.Count = 2, divisor: ranges.Positive = 1.0, steps: ranges.Count = 100,
              letters: ranges.Text = '', seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with an expert for each domain in place of each dense layer; see `dense`.

  Args:
    share: part of the units that an expert has; at 1.0 the model computes what it did before.
    width, heads, depth, divisor: of the router, see `layers/read_me.py`. Its embedding begins as the first
      `width` columns of the model's.
    steps: of a turn; the paper's router has 100 of 300 steps, in 5 rounds.
    letters: of the blocks; '' = all with dense layers. seed: of the router's first numbers.
  Differs: rates that fall by 0.8 a round are a schedule, 'staircase', and not set here.
  """
  layers, parts = dense.found(config, letters), domains(config)
  if 'vocab_size' not in config.model:
    raise errors.UserError(f'model.name={config.model.name!r} reads no token ids, by which the router '
                           'chooses; nearest: lm')
  router = dict(width=width, heads=heads, depth=depth, divisor=divisor, vocab_size=config.model.vocab_size)
  changes: dict[str, object] = {
      'losses.pregate': (1.0, 'sum'), 'train.trainable': 'all',
      'groups': dict(router=dict(every=steps, turn=(0, TURNS)),
                     rest=dict(every=steps, turn=(1, TURNS), lasts=TURNS - 1))}
  for layer in layers:
    section = sparse.section(config, layer.where)
    changes[layer.where] = dense.block(section, **_layer(section), **router, num_experts=len(parts),
                                       share=share)
  sizes = [_sizes(calibration('unit_sizes', 'unit_tokens', data=part)) for part in parts]
  made: dict[tuple, object] = dict(_nets(params, sparse.changed(config, changes), seed))
  for layer in layers:
    mask = masks(np.stack([of_domain[layer.name] for of_domain in sizes]), share)
    made[layer.path] = dict(experts=dict(layer.arrays(params), mask=mask))
  return sparse.replaced(params, made), changes


def domains(config: ml_collections.ConfigDict) -> list[dict]:
  """Returns the fields of section `data` for each domain of a configuration: one file, or one task.

  Raises UserError for data of a single domain.
  """
  data = config.data.to_dict()
  tasks = [entry if isinstance(entry, str) else entry[0] for entry in data.get('mixture') or ()]
  parts = [dict(mixture=(), task=task) for task in tasks]
  parts = parts or [dict(files=(file,)) for file in data.get('files', ())]
  if len(parts) < 2:
    raise errors.UserError('an expert is made for each file or task of the data, and there is one; nearest: '
                           '--config.data.files=A,B,..., a file for each domain')
  return parts


def _sizes(sums):
  """Dict layer -> f[F], the mean absolute activations of a domain."""
  return {layer: of_layer['unit_sizes'] / max(float(of_layer['unit_tokens']), 1.0)
          for layer, of_layer in sums.items()}


def masks(sizes: np.ndarray, share: float) -> np.ndarray:
  """Returns f32[E,F]: 1 where a size of sizes f[E,F] is above the N-th largest of its row, N = share F.

  So N - 1 units are left, and fewer with ties; at share 1.0 all.

  >>> masks(np.array([[4.0, 3.0, 2.0, 1.0]]), 0.5).tolist()
  [[1.0, 0.0, 0.0, 0.0]]
  """
  number = max(int(share * sizes.shape[1]), 1)
  if number == sizes.shape[1]:
    return np.ones(sizes.shape, np.float32)
  border = -np.sort(-sizes, axis=1)[:, number - 1:number]            # [E, 1]
  return (sizes > border).astype(np.float32)


def _layer(section):
  """The fields of the layer in place of the dense layer `section`, but for the router's."""
  if section.limit is not None:
    raise errors.UserError(f'limit={section.limit} of a gated layer, which a masked network has not')
  if section.gated and section.use_bias:
    raise errors.UserError('use_bias=True of a gated layer, which a masked network has only where not gated')
  return dict(layer='read_me') | {field: section[field] for field in (
      'd_ff', 'activation', 'gated', 'use_bias', 'dropout_rate', 'init_scale')}


def _nets(params, config, seed):
  """Dict path -> nested dict of the arrays of the routers' nets, one a stack, in the model of `config`."""
  model, nets = sparse.abstract(config), {}
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  for number, stack in enumerate(model.stacks()):
    if 'read_me' in stack.tied:
      path, rng = (*paths[id(stack)], 'tied', 'read_me', 'net'), np.random.default_rng([seed, number])
      shapes = nnx.to_pure_dict(nnx.state(stack.tied['read_me'].net))
      nets[path] = _drawn(shapes, rng) | dict(embed=_embedding(params, shapes['embed'].shape))
  return nets


def _drawn(shapes, rng, name=''):
  """First numbers: matrices of variance 1 / fan-in, scales of 1, biases of 0."""
  if isinstance(shapes, dict):
    return {key: _drawn(value, rng, key) for key, value in shapes.items()}
  if len(shapes.shape) == 2:
    return np.float32(rng.normal(0, shapes.shape[0] ** -0.5, shapes.shape))
  return np.full(shapes.shape, float(name == 'scale'), np.float32)


def _embedding(params, shape):
  """f32[V,W]: the first columns of the model's embedding."""
  table = layout.at(params, ('embed', 'table'))
  if table.shape[1] < shape[1]:
    raise errors.UserError(f'width={shape[1]}: the embedding, whose columns the router takes, has '
                           f'{table.shape[1]}; nearest: width={table.shape[1]}')
  return table[:, :shape[1]]
