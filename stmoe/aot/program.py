"""What a compiled program moves between devices and keeps in memory, read from its text.

A collective is counted once wherever it runs: its -start and -done count as a single collective. So do the
pieces of a TPU's collective that was fused into several matrix products (a chain of one channel).
"""

import collections
import dataclasses
import re

from stmoe.aot import hlo
from stmoe.aot import products

KINDS = ('all-to-all', 'ragged-all-to-all', 'all-gather', 'all-reduce', 'reduce-scatter',
         'collective-permute')
SCOPES = ('route', 'dispatch', 'experts', 'combine', 'attention', 'cross_attention', 'layer', 'loss',
          'optimizer')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program.

  kind:    of KINDS.
  name:    in the text.
  bytes:   payload of a device in an execution: the larger of what goes in and what comes out.
  devices: in a group that takes part together.
  times:   executions per run of the program, by the trips of the loops around it.
  known:   whether these trips are known; an unknown loop counts as one.
  scope:   'forward/experts', 'backward/attention', ...: where in the model, '' where the text does not say.
  """
  kind: str
  name: str
  bytes: int
  devices: int
  times: int
  known: bool
  scope: str

  @property
  def total(self):
    """Payload of a device in a run of the program."""
    return self.bytes * self.times

  @property
  def wire(self):
    """Bytes that a device sends in a run of the program, by the best known algorithm (a ring)."""
    if self.kind == 'collective-permute':
      return self.total
    return self.total * (2 if self.kind == 'all-reduce' else 1) * (self.devices - 1) / self.devices


def collectives(module, devices):
  """Returns the list of Collective of an `hlo.Module` compiled for `devices` devices, in its order."""
  listed, chains = [], set()
  for name, body in module.computations.items():
    if name not in module.runs:
      continue
    times, known = module.runs[name]
    for i in body:
      kind = i.opcode.removesuffix('-start')
      if kind not in KINDS:
        continue
      chain = re.search(r'chain_id="(\w+)"', i.attributes)
      channel = re.search(r'channel_id=(\d+)', i.attributes)
      if chain and channel:
        if (kind, chain.group(1), channel.group(1)) in chains:
          continue
        chains.add((kind, chain.group(1), channel.group(1)))
      moved = max(sum(map(hlo.size, module.operand_shapes(name, i))), hlo.size(_result(body, i).shape))
      listed.append(Collective(kind, i.name, moved, _group(i, devices), times, known, scope(i.op_name)))
  return listed


def _result(body, i):
  """The instruction whose shape is what the collective `i` gives: its -done, if any."""
  return next((x for x in body if x.opcode == f'{i.opcode.removesuffix("-start")}-done'
               and i.name in x.operands), i) if i.opcode.endswith('-start') else i


def _group(i, devices):
  """Devices of a group of the collective `i`, from the three ways in which groups are written."""
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', i.attributes)
  if listed:
    return len(listed.group(1).split(','))
  table = re.search(r'replica_groups=\[\d+,(\d+)\]', i.attributes)
  if table:
    return int(table.group(1))
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', i.attributes)
  if not mesh:
    return devices
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
  count = 1
  for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2)):
    count *= int(part) if part else sizes[axis]
  return count


def scope(op_name):
  """Returns 'direction/part' of JAX's name of an operation.

  >>> scope('jit(step)/transpose(jvp())/while/body/closed_call/layer/experts/dot_general')
  'backward/experts'
  >>> scope('jit(step)/jvp(experts)/shard_map/transpose(jvp(dispatch))/all_to_all')
  'backward/dispatch'
  >>> scope('jit(step)/optimizer/add'), scope('jit(step)/jvp()/dot_general'), scope('')
  ('optimizer', 'forward', '')
  """
  # Transformations wrap names: 'transpose(jvp(experts))'.
  words = [re.sub(r'^(\w+\()+|\)+$', '', word) for word in op_name.split('/')]
  part = next((word for word in reversed(words) if word in SCOPES), '')
  if 'rematted_computation' in words:
    way = 'recomputed'
  else:
    way = 'backward' if 'transpose(' in op_name else 'forward' if 'jvp' in op_name else ''
  return '/'.join(filter(None, (way, part)))


def by_kind(found):
  """Returns dict kind -> dict(count, executions, bytes, wire_bytes, known) of a list of Collective."""
  kinds = {}
  for kind in KINDS:
    mine = [c for c in found if c.kind == kind]
    if mine:
      kinds[kind] = dict(count=len(mine), executions=sum(c.times for c in mine),
                         bytes=sum(c.total for c in mine), wire_bytes=sum(c.wire for c in mine),
                         known=all(c.known for c in mine))
  return kinds


def by_scope(found):
  """Returns dict 'kind scope' -> bytes of a list of Collective, largest first."""
  sums = collections.Counter()
  for c in found:
    sums[f'{c.kind} {c.scope}'.strip()] += c.total
  return dict(sums.most_common())


def overlap(module):
  """Returns {collective: matrix products between its start and its end} of a scheduled program.

  Products are dots, convolutions, library calls, kernels, and fusions and loops that hold some. Products
  fused with a piece of a TPU's collective count too. Collectives that block are left out.
  """
  if not module.scheduled:
    raise ValueError('the program is not scheduled: the order of its text says nothing')
  products_within = {}
  for name in module.runs:
    body, starts, chains = module.computations[name], {}, {}
    product = [products.is_product(module, i) for i in body]
    for place, i in enumerate(body):
      if i.opcode.endswith('-start') and _kind(module, i):
        starts[i.name] = place
      elif i.opcode.endswith('-done') and i.operands and i.operands[0] in starts:
        products_within[i.operands[0]] = sum(product[starts[i.operands[0]]:place])
      for chain in _chains(module, i):
        chains.setdefault(chain, []).append(place)
    for (kind, chain, channel), places in chains.items():
      products_within[f'{kind} chain {chain} channel {channel}'] = sum(product[min(places):max(places) + 1])
  return products_within


def _kind(module, i):
  """The kind of collective that `i` starts: its own, or of what an async-start calls; else None."""
  kinds = [i.opcode, *(inner.opcode for inner in module.reached(i))]
  return next((k.removesuffix('-start') for k in kinds if k.removesuffix('-start') in KINDS), None)


def _chains(module, i):
  """The chains of collectives of which the fusion `i` holds a piece."""
  if i.opcode != 'fusion':
    return
  for inner in module.reached(i):
    chain = re.search(r'chain_id="(\w+)"', inner.attributes)
    channel = re.search(r'channel_id=(\d+)', inner.attributes)
    if inner.opcode in KINDS and chain and channel:
      yield inner.opcode, chain.group(1), channel.group(1)


def memory(compiled):
  """Returns dict of bytes per device: arguments, outputs, aliased, temporaries, code, peak; of a `Compiled`.

  peak: arguments, temporaries, code, and the outputs that do not take the place of an argument.
  """
  analysis = compiled.memory_analysis()
  parts = dict(arguments=analysis.argument_size_in_bytes, outputs=analysis.output_size_in_bytes,
               aliased=analysis.alias_size_in_bytes, temporaries=analysis.temp_size_in_bytes,
               code=analysis.generated_code_size_in_bytes)
  return parts | dict(peak=parts['arguments'] + parts['temporaries'] + parts['code'] + parts['outputs']
                      - parts['aliased'])
