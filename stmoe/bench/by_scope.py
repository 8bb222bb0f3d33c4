"""Where the time of a training step goes: parts that add up to the step, its dense twin, and a floor.

The floor is what the step would cost if nothing but arithmetic cost anything. It has three terms. All that the
dense twin does apart from its feed-forward layers. The feed-forward layers and the products of experts of this
step, in the pieces in which they were made. One pass over the state of parameters that the twin does not have.
"""

import math
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from stmoe import experiment
from stmoe.aot import hlo
from stmoe.bench import scopes
from stmoe.bench import timeline
from stmoe.data import batches as pipeline
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps

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


def measure(cfg, dense=None, rounds=5) -> dict:
  """Returns dict(step, dense, floor): each a dict part -> ms; without a dense configuration `step` alone.

  A part is a key of `scopes.SCOPES`, or `scopes.HOST`. The steps run in turn, and of each the fastest
  of `rounds` counts, so that its parts add up to a step that was.
  """
  programs = dict(step=_Program(cfg)) | ({} if dense is None else dict(dense=_Program(dense)))
  runs = [{name: program.step() for name, program in programs.items()} for _ in range(rounds + 1)][1:]
  best = {name: min((run[name] for run in runs), key=lambda parts: sum(parts.values())) for name in programs}
  if dense is not None:
    weights, slots = (a - b for a, b in zip(programs['step'].size, programs['dense'].size))
    best['floor'] = floor(best['step'], best['dense'], _pass_ms(2 * (weights + slots) + weights))
  return best


def floor(step: dict[str, float], dense: dict[str, float], idle_ms: float) -> dict[str, float]:
  """Returns dict part -> ms of the floor.

  Args:
    step, dense: dict part -> ms.
    idle_ms:     of one pass over the state that `dense` does not have.
  """
  own = {part: step[part] for part in ('feed-forward', 'products') if part in step}
  return dense | own | dict(optimizer=dense['optimizer'] + idle_ms)


class _Program:
  """A compiled training step with its state, on one device; `size` is the bytes of (parameters, slots)."""

  def __init__(self, cfg):
    self.cfg = cfg
    with self._mesh() as mesh:
      plan = states.blueprint(cfg, mesh)
      self.state, do_step = states.init(cfg, plan), steps.make(cfg, plan)
      self.batch = check.place(next(pipeline.train_iterator(cfg)), mesh)
      self.compiled = do_step.lower(self.state, self.batch).compile()
    text = self.compiled.as_text()
    self.module = hlo.title(text)
    weights = jax.tree.leaves(self.state['params'])
    self.parts = scopes.of(hlo.parse(text), {w.shape for w in weights})
    self.size = tuple(sum(x.nbytes for x in jax.tree.leaves(self.state[part]))
                      for part in ('params', 'opt_state'))

  def step(self) -> dict[str, float]:
    """Returns dict part -> ms of one profiled step."""
    with tempfile.TemporaryDirectory() as folder, self._mesh():
      with jax.profiler.trace(folder):
        start = time.perf_counter()
        self.state, report = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, report))
        whole = 1e3 * (time.perf_counter() - start)
      events = timeline.read(pathlib.Path(folder), self.module)
    parts = dict.fromkeys(scopes.SCOPES, 0.0)
    for name, ns in timeline.shared([e for e in events if e[2] in self.parts]).items():
      parts[self.parts[name]] += ns / 1e6
    found = {part: ms for part, ms in parts.items() if ms}
    return found | {scopes.HOST: whole - sum(found.values())}

  def _mesh(self):
    return states.on_mesh(self.cfg.mesh, jax.devices()[:1])


def _pass_ms(size, rounds=7):
  """Milliseconds in which this machine reads and writes `size` bytes in all."""
  stream = jax.jit(lambda x: 0.5 * x + 0.5, donate_argnums=0)
  x, seconds = jax.block_until_ready(jnp.ones(STREAM)), math.inf
  for _ in range(rounds):
    start = time.perf_counter()
    x = jax.block_until_ready(stream(x))
    seconds = min(seconds, time.perf_counter() - start)
  return 1e3 * seconds * size / (2 * x.nbytes)


def table(rows: dict) -> list[str]:
  """Returns the lines of a table of `measure`'s result: a part a line, ms, then the sums."""
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
  return lines
