"""Which part of a training step an instruction of the compiled program belongs to.

The parts are read from the named scopes that the layers open (`route`, `dispatch`, `experts`, `combine`, ...)
and from shapes: the compiler gives its own copies no name.
"""

import re

from stmoe.aot import hlo
from stmoe.aot import products as aot

# The parts in the order of tables -> what is in them.
SCOPES = {
    'attention': 'attention with its norm and residual',
    'feed-forward': 'dense and shared layers, norms and residuals of all feed-forward layers',
    'router': 'logits, choice, gates and losses of routers',
    'tables': 'which row goes where: the sort, integers alone',
    'placing': 'rows of tokens moved to their expert and back',
    'products': "products of experts' matrices",
    'activations': "what else experts do to rows",
    'padding': 'rows of zeros behind the rows of a block',
    'weights': "copies of weights, and their gradients added up",
    'sums': "the outputs of a token's experts added up",
    'kept': 'activations that are kept for the backward, put away and taken back',
    'head and loss': 'logits, loss, embedding',
    'optimizer': 'gradient norm and clipping, moments, parameters, experts without tokens too',
    'metrics': 'what is reported of routing and loss',
    'rest': 'without a name',
}
HOST = 'host'                            # the time of a step in which its program does not run
CONTAINERS = ('while', 'conditional', 'call')    # only run other instructions, which are recorded themselves
SLICES = ('dynamic_slice', 'dynamic_update_slice', 'broadcast_in_dim', '')   # how a scan stores its arrays

# Named scopes -> part, the first that is found in a name decides.
NAMED = (
    (('optimizer',), 'optimizer'), (('metrics',), 'metrics'), (('head', 'loss', 'embed'), 'head and loss'),
    (('attention', 'cross_attention'), 'attention'), (('route',), 'router'), (('combine',), 'sums'),
    (('weights',), 'weights'), (('pad',), 'padding'), (('place',), 'placing'), (('experts',), 'activations'),
    (('layer', 'shared'), 'feed-forward'),
)


def of(module: hlo.Module, stored: set[tuple[int, ...]]) -> dict[str, str]:
  """Returns dict instruction -> part, a key of SCOPES; without instructions that only run others.

  Args:
    module: of a compiled training step.
    stored: shapes of the parameters.
  """
  cut = {shape[1:] for shape in stored if len(shape) > 2}            # of a layer, where layers are stacked
  return {i.name: _scope(module, i, stored | cut) for body in module.computations.values() for i in body
          if i.opcode not in CONTAINERS}


def products(module: hlo.Module) -> set[str]:
  """Returns the names of the instructions that are a product of matrices or hold one."""
  return {i.name for body in module.computations.values() for i in body
          if i.opcode not in CONTAINERS and aot.is_product(module, i)}


def _scope(module, instruction, weights):
  name = _name(module, instruction)
  if 'opt_state' in instruction.inside:
    return 'optimizer'
  _, _, end = name.rpartition('/')
  scans = end in SLICES and 'closed_call' not in name.rpartition('while/body')[2]
  words = set(re.findall(r'\w+', name))
  part = next((part for scopes, part in NAMED if words & set(scopes)), None)
  if part in (None, 'feed-forward', 'attention') and scans:
    shapes = {dims[1:] if dims[:1] == (1,) else dims for _, dims in hlo.arrays(instruction.shape)}
    of_weights = shapes & weights
    return 'weights' if of_weights else part or 'kept'
  if part == 'activations':
    return 'products' if aot.is_product(module, instruction) else part
  if 'dispatch' in words and part == 'feed-forward':
    of_rows = any(dtype[0] in 'fb' and len(dims) > 1 for dtype, dims in hlo.arrays(instruction.shape))
    return 'placing' if of_rows else 'tables'
  return part or 'rest'


def _name(module, instruction):
  """JAX's name of an instruction, or that of an instruction inside a fusion without a name."""
  inside = module.reached(instruction) if instruction.opcode == 'fusion' else ()
  return instruction.op_name or next((i.op_name for i in inside if i.op_name), '')
