"""Checkpoints of T5X and flaxformer: a folder of zarr arrays, target.<path with dots>, and no configuration.

Sizes are read off the arrays. What sizes do not say is as in Switch Transformer. The feed-forward layers have
GELU where they are gated and ReLU where not. Routing is top-1 with capacity factors (1.25, 2.0). `--config`
changes this, for example --config.blocks.m.router.name=st_moe. Layers must be stored each by itself. The
optimizer's statistics are not read.
"""

import dataclasses
import hashlib
import math
import pathlib
import re

import numpy as np
import tensorstore as ts

from stmoe import errors
from stmoe import files
from stmoe.interop import rules

PREFIX = 'target.'
SAMPLE = 1 << 15                         # bytes at either end of a file
DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16', 'float64': 'F64'}
SPARSE = 'mlp/expert/wi_0/kernel', 'mlp/expert/wi/kernel'
ATTENTION = dict(wq='query', wk='key', wv='value', wo='out')
COPIES: dict[str, str] = {}
RULES = [
    ('embed/table', 'token_embedder/embedding'),
    ('head/w', 'decoder/logits_dense/kernel'),
    ('{stack}_bias/table', '{stack}/relpos_bias/rel_embedding'),
    ('{stack}/norm/scale', '{stack}/{stack}_norm/scale'),
    ('{stack}/layers/{i}/layer_norm/scale', '{stack}/layers_{i}/pre_mlp_layer_norm/scale'),
    ('encoder/layers/{i}/attention_norm/scale', 'encoder/layers_{i}/pre_attention_layer_norm/scale'),
    ('decoder/layers/{i}/attention_norm/scale', 'decoder/layers_{i}/pre_self_attention_layer_norm/scale'),
    ('decoder/layers/{i}/cross_norm/scale', 'decoder/layers_{i}/pre_cross_attention_layer_norm/scale'),
    *((f'{ours}/{w}', f'{theirs}/{name}/kernel') for w, name in ATTENTION.items() for ours, theirs in (
        ('encoder/layers/{i}/attention', 'encoder/layers_{i}/attention'),
        ('decoder/layers/{i}/attention', 'decoder/layers_{i}/self_attention'),
        ('decoder/layers/{i}/cross', 'decoder/layers_{i}/encoder_decoder_attention'))),
    ('{stack}/layers/{i}/layer/router/w', '{stack}/layers_{i}/mlp/router/router_weights/w/kernel'),
]


@dataclasses.dataclass(frozen=True)
class Array:
  """A zarr array, read as `files.Tensor` is."""
  store: object
  dtype: str
  shape: tuple
  size: int

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` as a numpy array; all of them by default."""
    rows = self.store if not self.shape else self.store[first:self.shape[0] if last is None else last]
    try:
      return np.asarray(rows.read().result())
    except files.BROKEN as error:
      place = self.store.spec().kvstore.url
      raise errors.Damaged(place, f'cannot be read ({files.reason(error)})') from error


def found(folder):
  """Returns whether `folder` is such a checkpoint."""
  return any(pathlib.Path(folder).glob(f'{PREFIX}*/.zarray'))


def fingerprint(folder):
  """Yields a line for each file of arrays in `folder`, which another content makes another.

  The line has name, size, time, and a digest of the first and last SAMPLE bytes.
  """
  for path in sorted(path for path in pathlib.Path(folder).glob(f'{PREFIX}*/*') if path.is_file()):
    try:
      about, digest = path.stat(), hashlib.sha256()
      with path.open('rb') as f:
        digest.update(f.read(SAMPLE))
        f.seek(max(about.st_size - SAMPLE, 0))
        digest.update(f.read(SAMPLE))
    except OSError as error:
      raise errors.Damaged(path, error.strerror) from error
    yield f'{path.parent.name}/{path.name} {about.st_size} {about.st_mtime_ns} {digest.hexdigest()}'


def tensors(folder):
  """Returns dict name ('encoder/layers_0/...') -> Array of the parameters in `folder`."""
  arrays = {}
  for path in sorted(pathlib.Path(folder).glob(f'{PREFIX}*')):
    # A missing piece of an array would be zeros.
    spec = dict(driver='zarr', kvstore=dict(driver='file', path=f'{files.plain_path(path)}/'),
                fill_missing_data_reads=False)
    try:
      store = ts.open(spec, open=True, read=True).result()
    except files.BROKEN as error:
      raise errors.Damaged(path, f'is no zarr array ({files.reason(error)})') from error
    kind = DTYPES.get(store.dtype.name)
    if kind is None:
      raise errors.UserError(f'{path} is of dtype {store.dtype.name} (there are: {", ".join(DTYPES)})')
    name = path.name.removeprefix(PREFIX).replace('.', '/')
    size = math.prod(store.shape) * store.dtype.numpy_dtype.itemsize
    arrays[name] = Array(store, kind, tuple(store.shape), size)
  return arrays


def configure(shapes):
  """Returns the sections model, blocks and losses of a checkpoint; `shapes` is dict name -> shape."""
  def shape(name):
    if name not in shapes:
      raise errors.UserError(f'1 tensors are missing: {name}{errors.nearest(name, shapes)}')
    return shapes[name]

  vocab_size, d_model = shape('token_embedder/embedding')
  heads, buckets = shape('encoder/relpos_bias/rel_embedding')
  width = shape('encoder/layers_0/attention/query/kernel')[1]
  letters, blocks = {}, {}
  for stack in ('encoder', 'decoder'):
    layers = {int(m.group(1)) for m in (re.match(rf'{stack}/layers_(\d+)/', name) for name in shapes) if m}
    letters[stack] = ''.join(_block(f'{stack}/layers_{i}/', shape, shapes, blocks)
                             for i in range(max(layers, default=-1) + 1))
  tied = 'decoder/logits_dense/kernel' not in shapes
  model = dict(name='t5', vocab_size=vocab_size, d_model=d_model, num_heads=heads, head_dim=width // heads,
               encoder=rules.pattern(letters['encoder']), decoder=rules.pattern(letters['decoder']),
               num_buckets=buckets, tie_embeddings=tied,
               dtype='float32', scan_layers=True, remat='elementwise')
  return dict(model=model, blocks=blocks, losses=dict(balance=(0.01, 'mean')) if 'm' in blocks else {})


def _block(layer, shape, shapes, blocks):
  """The letter of a layer, whose block is added to `blocks`."""
  sparse = next((layer + name for name in SPARSE if layer + name in shapes), None)
  if sparse is None:
    gated = f'{layer}mlp/wi_0/kernel' in shapes
    d_ff = shape(f'{layer}mlp/{"wi_0" if gated else "wi"}/kernel')[1]
    blocks['d'] = dict(layer='dense', d_ff=d_ff, activation='gelu' if gated else 'relu', gated=gated)
    return 'd'
  gated, (experts, _, d_ff) = sparse.endswith('wi_0/kernel'), shape(sparse)
  router = dict(name='switch', num_experts=experts, capacity_factor=(1.25, 2.0), min_capacity=4)
  blocks['m'] = dict(layer='moe', executor='gather', group_size=None, router=router, experts=dict(
      name='glu' if gated else 'mlp', d_ff=d_ff, activation='gelu' if gated else 'relu'))
  return 'm'


def table(c):
  """Returns the rules of configuration `c`; expert arrays are stacked here and there."""
  all_rules = list(RULES)
  for letter, ours, theirs in (('d', 'layer/', 'mlp/'), ('m', 'layer/experts/', 'mlp/expert/')):
    block = c['blocks'].get(letter, {})
    gated = block.get('gated') or block.get('experts', {}).get('name') == 'glu'
    names = dict(wi='wi_0', wg='wi_1', wo='wo') if gated else dict(wi='wi', wo='wo')
    all_rules += [('{stack}/layers/{i}/' + ours + w, '{stack}/layers_{i}/' + f'{theirs}{name}/kernel')
                  for w, name in names.items()]
  return all_rules


def ignored(c):
  """Returns regular expressions of tensors that are not read: none."""
  return ()
