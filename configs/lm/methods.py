"""The compared methods: a row for each of METHODS in every `configs/*/compared.py`; the file is the registry.

A method that sends a token to k experts gets experts of width F/k, where F is the width of the
dense layer. The products of routers (D x E per token) and virtual experts are the only difference.
Tokens are routed together in groups of `group_size` (None = one sequence). In small groups capacity is
uneven and more tokens are dropped. The groups of a batch must divide over the devices.
"""

import importlib
import pathlib

from stmoe import errors
from stmoe import lookup
from stmoe.configs import common
from stmoe.configs.lm import models


def dense(d_ff, num_experts=0, group_size=None):
  """Returns the dense layer every method is compared with, width F; called like the methods' layers."""
  return dict(layer='dense', d_ff=d_ff)


def table():
  """Returns dict method -> row (see `common.compared`), dense first, then by folder."""
  rows = dict(dense=common.compared(dense))
  for path in sorted(pathlib.Path(__file__).resolve().parents[1].glob('*/compared.py')):
    rows |= importlib.import_module(f'stmoe.configs.{path.parent.name}.compared').METHODS
  return rows


def find(method):
  """Returns the row of `method`; raises UserError naming the nearest methods."""
  rows = table()
  if method not in rows and lookup.has('router', method):
    raise errors.UserError(f'method={method} is a router without a row in compared.py; nearest: '
                           f'method=switch --config.blocks.m.router.name={method}')
  return common.choose('method', method, rows)


def causal(method):
  """Returns the row of a `method` that a causal language model may use."""
  row = find(method)
  if row['backbone'] == 't5':
    raise errors.UserError(f'method={method!r} is not causal, its loss would leak the text to be predicted; '
                           f'lm/stdlib:method={method} trains it in the encoder of a T5 model')
  return row


def put(c, row, experts, d_ff, num_layers, length, group_size=None, backbone=None, **sizes):
  """Sets model, blocks and losses of `c` to the values of a method.

  Args:
    row:     of `table`.
    d_ff:    F of the dense layers, whose active FLOPs the compared layers have as well.
    num_layers: half of them dense, half compared.
    length:  of a row.
    backbone: a model of models.py; None = that of the row.
    sizes:   vocab_size, d_model, remat.
  """
  make = common.choose('backbone', backbone or row['backbone'], models.BACKBONES)
  common.whole('experts', experts)
  all_sizes = dict(sizes, length=length)
  block = row['block'](d_ff, experts, group_size, **{name: all_sizes[name] for name in row['sizes']})
  blocks = dict(m=block) if 'layer' in block else block
  pattern = row['pattern'] or (lambda pairs: (('dm', pairs),))
  c.model = make(layers=pattern(num_layers // 2), num_layers=num_layers, **sizes) | row['model']
  for recipe in blocks.values():             # a layer that looks up token ids knows how many there are
    sparse = common.sparse(recipe)
    if sparse and 'vocab_size' in sparse['router']:
      sparse['router']['vocab_size'] = c.model.get_ref('vocab_size')
  c.blocks = dict(d=dense(d_ff)) | blocks
  common.schedule(c)
  c.losses.update(row['losses'])
  c.loss.update(row['loss'])
