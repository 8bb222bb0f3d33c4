"""Where the time of a training step goes: parts that add up to the step, its dense twin, and a floor.

The floor is what the step would cost if nothing but arithmetic cost anything. It has the parts of the dense
twin apart from feed-forward layers. It has this step's own feed-forward layers, and its products in the
pieces in which they were made. And it has one pass over the state that the twin does not have.
"""

import math
import pathlib
import statistics
import tempfile
import time
import typing

import jax
import jax.numpy as jnp

from stmoe import experiment
from stmoe.aot import hlo
from stmoe.aot import program
from stmoe.bench import held
from stmoe.bench import scopes
from stmoe.bench import timeline

STREAM = 2 ** 24                         # numbers of the array whose passes tell the memory's speed


def twin(name: str) -> str | None:
  """Returns the name of the dense twin of an experiment `name`, None where it takes no `method`.

  >>> twin('lm/stdlib_small:method=hash,experts=32'), twin('switch/base_c4')
  ('lm/stdlib_small:experts=32,method=dense', None)
  """
  where, arg = experiment.split(name)
  if 'method' not in experiment.arguments(where):
    return None
  kept = [word for word in arg.split(',') if word and not word.startswith('method=')]
  return f'{where}:{",".join([*kept, "method=dense"])}'


def methods(name: str) -> list[str]:
  """Returns the names of the experiment `name` with each of the methods that `stmoe compare` compares.

  Of a name that says its method, or of an experiment without methods, that is the name alone.

  >>> methods('lm/zoo:smoke')[:2], methods('switch/base_c4')
  (['lm/zoo:smoke,method=dense', 'lm/zoo:smoke,method=adamoe'], ['switch/base_c4'])
  """
  where, arg = experiment.split(name)
  found = getattr(experiment.find_module(where)[1], 'METHODS', ())
  words = [word for word in arg.split(',') if word]
  if not found or any(word.startswith('method=') for word in words):
    return [name]
  return [f'{where}:{",".join([*words, method])}' for method in found]


def measure(cfg, dense=None, rounds=5) -> dict:
  """Returns dict(parts, memory, processor); parts is dict(step, dense, floor) of dicts part -> ms.

  A part is a key of `scopes.SCOPES`, or `scopes.HOST`. The steps run in turn, and of each the fastest
  of `rounds` counts, so that its parts add up to a step that was. memory is dict(step, dense, idle) of bytes:
  peaks of the steps, and the state that the dense twin does not have. processor is dict(step, dense) of ms of
  all cores together, medians, and `ratio`, the median over rounds. Without a dense configuration `step` is
  alone.
  """
  programs = dict(step=_Program(cfg)) | ({} if dense is None else dict(dense=_Program(dense)))
  runs = [{name: each.step() for name, each in programs.items()} for _ in range(rounds + 1)][1:]
  parts = {name: min((run[name][0] for run in runs), key=lambda row: sum(row.values())) for name in programs}
  processor = {name: statistics.median(run[name][1] for run in runs) for name in programs}
  memory = {name: each.peak for name, each in programs.items()}
  if dense is not None:
    processor['ratio'] = statistics.median(run['step'][1] / run['dense'][1] for run in runs)
    weights, slots = (a - b for a, b in zip(programs['step'].size, programs['dense'].size))
    parts['floor'] = floor(parts['step'], parts['dense'], _pass_ms(2 * (weights + slots) + weights))
    memory['idle'] = weights + slots
  return dict(parts=parts, memory=memory, processor=processor)


def floor(step: dict[str, float], dense: dict[str, float], idle_ms: float) -> dict[str, float]:
  """Returns dict part -> ms of the floor.

  Args:
    step, dense: dict part -> ms.
    idle_ms:     of one pass over the state that `dense` does not have.
  """
  own = {part: step[part] for part in ('feed-forward', 'products') if part in step}
  return dense | own | dict(optimizer=dense['optimizer'] + idle_ms)


class _Program(held.Step):
  """What is known of a held step before it runs; `size` is the bytes of (parameters, slots)."""

  def __init__(self, cfg):
    super().__init__(cfg)
    self.peak = program.memory(self.compiled)['peak']
    self.module, self.parts = named(self.compiled, self.state)
    self.size = tuple(sum(x.nbytes for x in jax.tree.leaves(self.state[part]))
                      for part in ('params', 'opt_state'))

  def step(self) -> tuple[dict[str, float], float]:
    """Returns (dict part -> ms, ms of processors) of one profiled step."""
    with self.mesh():
      return profiled(self.run, self.module, self.parts)


def named(compiled: jax.stages.Compiled, state: dict) -> tuple[str, dict[str, str]]:
  """Returns (name of a compiled training step, dict instruction -> part) for `profiled`."""
  text = compiled.as_text()
  return hlo.title(text), scopes.of(hlo.parse(text), {w.shape for w in jax.tree.leaves(state['params'])})


def profiled(run: typing.Callable, module: str, parts: dict[str, str]) -> tuple[dict[str, float], float]:
  """Returns (dict part -> ms, ms of processors) of run(), which runs the program `module` once and waits."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      start, processor = time.perf_counter(), time.process_time()
      run()
      whole, processor = 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - processor)
    events = timeline.read(pathlib.Path(folder), module)
  taken = dict.fromkeys(scopes.SCOPES, 0.0)
  for name, ns in timeline.shared([event for event in events if event[2] in parts]).items():
    taken[parts[name]] += ns / 1e6
  found = {part: ms for part, ms in taken.items() if ms}
  return found | {scopes.HOST: whole - sum(found.values())}, processor


def _pass_ms(size, rounds=7):
  """Milliseconds in which this machine reads and writes `size` bytes in all."""
  stream = jax.jit(lambda x: 0.5 * x + 0.5, donate_argnums=0)
  x, seconds = jax.block_until_ready(jnp.ones(STREAM)), math.inf
  for _ in range(rounds):
    start = time.perf_counter()
    x = jax.block_until_ready(stream(x))
    seconds = min(seconds, time.perf_counter() - start)
  return 1e3 * seconds * size / (2 * x.nbytes)


def table(measured: dict) -> list[str]:
  """Returns the lines of a table of `measure`'s result: a part a line, ms, then sums and memory."""
  rows, memory = measured['parts'], {name: size / 2**20 for name, size in measured['memory'].items()}
  columns = list(rows)
  number = lambda ms: f'{ms:9.1f}' if ms else f'{"":9}'
  lines = [f'{"ms":14}' + ''.join(f'{name:>9}' for name in columns)]
  for part, what in (scopes.SCOPES | {scopes.HOST: 'start and end of the step, no instruction runs'}).items():
    if any(rows[name].get(part) for name in columns):
      lines.append(f'{part:14}' + ''.join(number(rows[name].get(part)) for name in columns) + f'   {what}')
  total = {name: sum(rows[name].values()) for name in columns}
  lines.append(f'{"all":14}' + ''.join(number(total[name]) for name in columns))
  if 'dense' in total:
    lines.append(f'{"over dense":14}' + ''.join(f'{total[name] / total["dense"]:9.3f}' for name in columns))
    over = memory['step'] / (memory['dense'] + memory['idle'])
    lines.append(f'peak memory {memory["step"]:.0f} MiB; dense {memory["dense"]:.0f} MiB, its missing state '
                 f'{memory["idle"]:.0f} MiB: {over:.3f} of both')
    lines.append(f'processor time over dense: {measured["processor"]["ratio"]:.3f}, median of paired ratios')
  return lines
