"""FLOPs and memory traffic of a compiled program on one device, loops counted as often as they run.

A `cost_analysis` of XLA counts the body of a loop once, and a stack of layers is a loop. Here every
matrix product (dot, convolution, library call) counts 2abc times the trips of the loops around it.
"""

import json
import math
import re

import numpy as np

from stmoe.aot import hlo

GEMM = ('__cublas', 'cublas', '__onednn$matmul', 'gemm')
# Nothing moves for these opcodes, or the instructions inside them are counted.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
        'after-all', 'iota', 'partition-id', 'replica-id', 'opt-barrier', 'copy-start', 'copy-done'}
SLICES = ('dynamic-slice', 'slice', 'gather')
KERNELS = ('tpu_custom_call', '__gpu$xla.gpu.triton', 'mosaic_gpu_v2')
ON_CHIP = re.compile(r'S\([1-9]\d*\)')     # a memory space other than the main memory (VMEM of a TPU)


def flops(module):
  """Returns (FLOPs of the matrix products of an execution, whether every loop's trip count is known)."""
  total, known = 0, True
  for name, (times, sure) in module.runs.items():
    in_computation = sum(product(module, name, i) for i in module.computations[name])
    total += times * in_computation
    known &= sure or not in_computation
  return total, known


def known(module):
  """Returns the FLOPs of the matrix products of an execution, None where the program does not say them.

  The program does not say them for a loop whose length depends on data, for branches, and for what a kernel
  (custom call) computes.
  """
  total, sure = flops(module)
  hidden = any(i.opcode == 'custom-call' and _target(i) in KERNELS
               or i.opcode == 'conditional' and is_product(module, i)
               for name in module.runs for i in module.computations[name])
  return total if sure and not hidden else None


def product(module, computation, i):
  """Returns the FLOPs of instruction `i` of `computation` if it is a matrix product, else 0."""
  if i.opcode == 'dot':
    (_, lhs), *_ = hlo.arrays(module.operand_shapes(computation, i)[0])
    return 2 * _elements(i.shape) * math.prod(lhs[d] for d in _numbers('lhs_contracting_dims', i.attributes))
  if i.opcode == 'convolution':
    return _convolution(*module.operand_shapes(computation, i)[:2], i)
  if i.opcode == 'custom-call' and any(word in _target(i) for word in GEMM):
    return _library(module.operand_shapes(computation, i), i)
  return 0


def is_product(module, i):
  """Whether `i` computes matrix products, itself or in what it calls; custom calls (kernels) count."""
  direct = lambda x: x.opcode in ('dot', 'convolution') or x.opcode == 'custom-call' and (
      any(word in _target(x) for word in GEMM) or _target(x) in KERNELS)
  return direct(i) or any(direct(inner) for inner in module.reached(i))


def _target(i):
  match = re.search(r'custom_call_target="([^"]*)"', i.attributes)
  return match.group(1) if match else ''


def _numbers(key, text):
  match = re.search(key + r'=\{([\d,]*)\}', text)
  return [int(n) for n in match.group(1).split(',') if n] if match else []


def _elements(shape):
  return math.prod(hlo.arrays(shape)[0][1])


def _library(shapes, i):
  """FLOPs of a GPU library call: from its first result and the axes it contracts."""
  config = re.search(r'backend_config=(\{.*\})', i.attributes)
  numbers = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', config.group(1) if config else '')
  (_, lhs), *_ = hlo.arrays(shapes[0])
  axes = json.loads(f'[{numbers.group(1)}]') if numbers else [len(lhs) - 1]
  return 2 * _elements(i.shape) * math.prod(lhs[int(d)] for d in axes)


def _convolution(left, right, i):
  """FLOPs of a convolution, without products with padding and with holes of a dilation.

  TPU programs write batched matrix products as convolutions over the batch axes.
  """
  labels = re.search(r'dim_labels=([\w?]+)_([\w?]+)->([\w?]+)', i.attributes).groups()
  (_, x), (_, kernel), (_, out) = (hlo.arrays(shape)[0] for shape in (left, right, i.shape))
  pairs = 1
  for axis in filter(str.isdigit, labels[0]):
    sizes = [dims[label.index(axis)] for label, dims in zip(labels, (x, kernel, out))]
    pairs *= _pairs(*sizes, int(axis), i.attributes)
  inner = kernel[labels[1].index('i')]
  return 2 * out[labels[2].index('b')] * out[labels[2].index('f')] * inner * pairs


def _pairs(size, kernel, out, axis, attributes):
  """How many (output, kernel) positions of a spatial axis meet an element of the input."""
  match = re.search(r'window=\{([^}]*)\}', attributes)
  window = dict(field.split('=') for field in match.group(1).split()) if match else {}
  number = lambda name: int(window[name].split('x')[axis]) if name in window else 1
  low = int(window['pad'].split('x')[axis].split('_')[0]) if 'pad' in window else 0
  at = np.add.outer(np.arange(out) * number('stride'), np.arange(kernel) * number('rhs_dilate')) - low
  holes = number('lhs_dilate')
  return int(np.sum((at % holes == 0) & (at >= 0) & (at <= (size - 1) * holes)))


def traffic(module):
  """Returns the bytes that an execution reads from and writes to the main memory of a device.

  Counted are operands and results of every instruction outside of fusions, times the trips of its loops. Of
  an array that a fusion only slices, the slices count. What the compiler holds on the chip counts nothing.
  This is an estimate: caches are not known.
  """
  fused = {name for body in module.computations.values() for i in body if i.opcode == 'fusion'
           for name in i.called('calls')}
  applied = {name for body in module.computations.values() for i in body for name in i.called('to_apply')
             if i.opcode != 'call'}
  total = 0
  for name, (times, _) in module.runs.items():
    if name not in fused and name not in applied:
      total += times * sum(_moved(module, name, i) for i in module.computations[name])
  return total


def _moved(module, computation, i):
  """Bytes that an instruction moves."""
  if i.opcode in FREE or i.opcode.endswith('-done'):
    return 0
  instructions = module.index[computation]
  shapes = [instructions[name].shape for name in i.operands if name in instructions]
  if i.opcode in SLICES:
    return 2 * main(i.shape)
  if i.opcode == 'dynamic-update-slice':
    return 2 * main(shapes[1])
  if i.opcode != 'fusion':
    return main(i.shape) + sum(map(main, shapes))
  body = module.computations[i.called('calls')[0]]
  parameters = {int(p.inside): p for p in body if p.opcode == 'parameter'}
  read = sum(_read(body, parameters[n], shape) for n, shape in enumerate(shapes) if n in parameters)
  root = next(x for x in body if x.root)
  inner = {x.name: x for x in body}
  updated = root if root.opcode == 'dynamic-update-slice' else inner.get(
      root.operands[0]) if root.opcode == 'bitcast' and root.operands else None
  if updated is not None and updated.opcode == 'dynamic-update-slice':
    return read + main(inner[updated.operands[1]].shape)
  return read + main(i.shape)


def _read(body, parameter, shape):
  """Bytes that a fusion reads of a parameter: only slices, where all uses of the parameter are slices."""
  uses = [x for x in body if parameter.name in x.operands]
  if uses and all(x.opcode in SLICES and x.operands[0] == parameter.name for x in uses):
    return 0 if ON_CHIP.search(shape) else sum(hlo.size(x.shape) for x in uses)
  if uses and all(x.opcode == 'dynamic-update-slice' and x.operands[0] == parameter.name for x in uses):
    return 0
  return main(shape)


def main(shape):
  """Returns the bytes of the arrays of `shape` that lie in the main memory.

  >>> main('(f32[2,3]{1,0:T(8,128)S(1)}, f32[4]{0})')
  16
  """
  parts = re.findall(r'[a-z]+[0-9]*[a-z0-9]*\[[^\]]*\](?:\{[^}]*\})?', shape)
  return sum(hlo.size(part) for part in parts if not ON_CHIP.search(part))
