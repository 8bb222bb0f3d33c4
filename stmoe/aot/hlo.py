"""The text of a compiled program (optimised HLO) as data: computations, instructions, how often each runs.

Only what reports need: shapes, operands, called computations, trip counts of loops. There are two ways to
know a trip count. The compiler wrote it (`known_trip_count`, CPU and GPU). Or the condition of the loop
compares a counter that begins at a constant with a constant (TPU).
"""

import dataclasses
import functools
import math
import re

BITS = dict(pred=8, token=0, opaque=0, c64=64, c128=128)   # other types say it: s32, bf16, f8e4m3fn, u4
SHAPE = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]')
HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
LINE = re.compile(r'^\s+(ROOT )?%([\w.\-]+) = ')
CALLED = re.compile(r'\b(calls|to_apply|body|condition|branch_computations|true_computation|'
                    r'false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line: `%name = shape opcode(operands), attributes`; operands are the names in the parentheses."""
  name: str
  shape: str
  opcode: str
  operands: tuple
  inside: str
  attributes: str
  root: bool

  def called(self, *kinds):
    """Returns the names of the computations that it calls; with `kinds` only calls by these attributes."""
    return [name for kind, names in CALLED.findall(self.attributes) if not kinds or kind in kinds
            for name in re.findall(r'[\w.\-]+', names)]

  @property
  def op_name(self):
    """JAX's name of it: 'jit(step)/jvp()/while/body/closed_call/layer/experts/dot_general', or ''."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match.group(1) if match else ''


@dataclasses.dataclass(frozen=True)
class Module:
  """The computations (name -> list of Instruction, in the order of the text) and the entry's name.

  scheduled: whether the order of the text is that of execution.
  """
  computations: dict
  entry: str
  scheduled: bool

  @functools.cached_property
  def index(self):
    """Dict computation -> dict name of an instruction -> Instruction."""
    return {name: {i.name: i for i in body} for name, body in self.computations.items()}

  def operand_shapes(self, computation, instruction):
    """Returns the shapes, as text, of the operands of an instruction of `computation`."""
    instructions = self.index[computation]
    return [instructions[name].shape for name in instruction.operands if name in instructions]

  def reached(self, instruction):
    """Yields every instruction of the computations that `instruction` calls, directly or through others."""
    for name in instruction.called():
      for inner in self.computations.get(name, ()):
        yield inner
        yield from self.reached(inner)

  @functools.cached_property
  def runs(self):
    """Dict computation -> (times it runs in one execution, whether every trip count is known).

    A loop whose count is unknown counts as one trip; computations that nothing calls are left out.
    """
    found = {}

    def visit(name, times, known):
      before = found.get(name, (0, True))
      found[name] = before[0] + times, before[1] and known
      for instruction in self.computations[name]:
        trips = self.trips(name, instruction) if instruction.opcode == 'while' else 1
        for callee in instruction.called():
          if callee in self.computations:
            visit(callee, times * (1 if trips is None else trips), known and trips is not None)
    visit(self.entry, 1, True)
    return found

  def trips(self, computation, loop):
    """Returns how often the body of the while `loop` runs, None where the text does not say."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if stated:
      return int(stated.group(1))
    condition = self.index.get(loop.called('condition')[0], {})
    root = next((i for i in condition.values() if i.root), None)
    if root is None or root.opcode != 'compare' or 'direction=LT' not in root.attributes:
      return None
    counter, limit = (condition.get(name) for name in root.operands)
    place = re.search(r'index=(\d+)', counter.attributes if counter else '')
    initial = self.index[computation].get(loop.operands[0])
    if not place or limit is None or limit.opcode != 'constant' or initial is None:
      return None
    if initial.opcode != 'tuple':
      return None
    start = self.index[computation].get(initial.operands[int(place.group(1))])
    while start is not None and start.opcode in ('copy', 'bitcast', 'convert'):
      start = self.index[computation].get(start.operands[0])
    if start is None or start.opcode != 'constant' or not re.fullmatch(r'-?\d+', limit.inside + start.inside):
      return None
    return int(limit.inside) - int(start.inside)


def title(text):
  """Returns the name of the program of an HLO text.

  >>> title('HloModule jit_step, is_scheduled=true')
  'jit_step'
  """
  return text.split(maxsplit=2)[1].rstrip(',')


def parse(text):
  """Returns the Module of the text of a compiled program (`compiled.as_text()`)."""
  computations, entry, body = {}, '', None
  for line in text.splitlines():
    head = HEAD.match(line)
    if head:
      body = computations.setdefault(head.group(2), [])
      entry = head.group(2) if head.group(1) else entry
    elif line.startswith('}'):
      body = None
    elif body is not None:
      instruction = _instruction(line)
      if instruction:
        body.append(instruction)
  return Module(computations, entry, 'is_scheduled=true' in text.partition('\n')[0])


def _instruction(line):
  head = LINE.match(line)
  if not head:
    return None
  text = line[head.end():]
  cut = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  shape, text = text[:cut], text[cut:].lstrip()
  opcode, _, _ = text.partition('(')
  end = _closing(text, len(opcode))
  inside = text[len(opcode) + 1:end]
  return Instruction(head.group(2), shape, opcode, tuple(re.findall(r'%([\w.\-]+)', inside)), inside,
                     text[end + 1:], bool(head.group(1)))


def _closing(text, start):
  """The place of the parenthesis that closes the parenthesis at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[place], 0)
    if depth == 0:
      return place
  return len(text)


def arrays(shape):
  """Returns [(dtype, dims)] of the arrays in the text of a shape, tuples flattened.

  >>> arrays('(f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[])')
  [('f32', (2, 3)), ('bf16', ())]
  """
  return [(dtype, tuple(int(re.sub('[<=]', '', n)) for n in dims.split(',') if n))
          for dtype, dims in SHAPE.findall(re.sub(r'/\*.*?\*/', '', shape))]


def size(shape):
  """Returns the bytes of a shape, without padding; of a tuple the sum.

  >>> size('(f32[2,3]{1,0}, bf16[4])'), size('pred[]'), size('s4[3]')
  (32, 1, 2)
  """
  return sum(-(-math.prod(dims) * _bits(dtype) // 8) for dtype, dims in arrays(shape))


def _bits(dtype):
  if dtype in BITS:
    return BITS[dtype]
  digits = re.search(r'\d+', dtype)
  return int(digits.group()) if digits else 0
