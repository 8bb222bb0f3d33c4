"""Trajectories of environments: families of dynamical systems that are integrated here, or files.

An environment is a system of a family with numbers of its own; its trajectories begin in several states.
"""

import dataclasses
import typing
from typing import NamedTuple

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import modules
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data.text import tasks


class System(NamedTuple):
  """A family: dy/dt of states [...,2] and constants, the constants' usual values, and a box of first
  states."""
  field: typing.Callable
  constants: tuple
  low: tuple
  high: tuple


def _second_order(acceleration):
  """The field of x'' = acceleration(x, v, *constants)."""
  return lambda x, v, *c: (v, acceleration(x, v, *c))


# Textbook forms of the families of ODE-Bench in two dimensions that MixER trains on, and their constants.
SYSTEMS = dict(
    harmonic=System(_second_order(lambda x, v, k: -k * x), (2.1,), (0.4, -0.1), (1.4, 0.9)),
    damped_harmonic=System(_second_order(lambda x, v, k, d: -k * x - d * v), (4.5, 0.43), (0.1, 0.0),
                           (1.2, 1.0)),
    pendulum=System(_second_order(lambda x, v, g: -g * np.sin(x)), (0.9,), (-1.9, -0.5), (0.9, 0.5)),
    damped_double_well=System(_second_order(lambda x, v, d: x - x ** 3 - d * v), (0.2,), (-1.8, -1.8),
                              (1.5, 1.0)),
    bead_on_hoop=System(_second_order(lambda x, v, c: (np.cos(x) - c) * np.sin(x)), (0.93,), (-1.6, -0.2),
                        (2.1, 0.2)),
    shear_flow=System(
        lambda a, b, c: (np.cos(a) / np.tan(b), (np.cos(a) ** 2 + c * np.sin(a) ** 2) * np.sin(b)), (4.2,),
        (0.8, 0.3), (1.13, 0.7)),
    van_der_pol=System(_second_order(lambda x, v, m: m * (1 - x ** 2) * v - x), (0.43,), (-0.2, 0.0),
                       (2.2, 0.1)),
    van_der_pol_simple=System(lambda x, y, m: (m * (y + x - x ** 3 / 3), -x / m), (3.37,), (-1.1, -0.1),
                              (0.7, 0.9)),
    glycolytic=System(lambda x, y, a, b: (-x + a * y + x ** 2 * y, b - a * y - x ** 2 * y), (2.4, 0.07),
                      (0.2, 0.1), (0.4, 0.4)),
    duffing=System(_second_order(lambda x, v, d, k: -d * v - x - k * x ** 3), (0.1, 0.89), (0.2, -0.6),
                   (0.6, 0.6)),
)


SHOWN = 4                                # environments of a family that figures show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
  """Rows of K trajectories of one environment: a first state of n numbers and the T states that follow.

  Entries: initial f32[rows,K,n]; values f32[rows,K,T n]; weights f32[rows,K]; given/environment i32[rows];
  family f32[rows,F], 1 at the environment's; around i32[rows], an environment. Where a batch has as
  many rows as there are environments, all its rows are around one that is drawn; in evaluation each is around
  its own. shown f32[rows,P]: at which of P = 4 F places figures show the first trajectory of a row.

  task: 'families': trajectories are integrated as they are needed, in float64. 'npz': they are read.
  families: names of SYSTEMS, each with `environments` environments, whose constants are the usual ones times
    numbers of 1 - spread to 1 + spread. First states are drawn from the family's box. data.draw seeds that.
  held_out: trajectories of an environment for evaluation, from states of their own; a multiple of K.
  train_trajectories: the same for training.
  files: of task npz: one for both splits, or one for training and one for validation. Arrays are values
    [M,T+1,n], environment [M] and family [M], whole numbers from 0, and may be times [T+1] and split [M].
  num_environments, num_families: in files; with task 'families' they follow from the other fields.
  trajectories: K, of a row.
  length: T, states of a trajectory after the first.
  num_values: n, of a state.
  step: time between states.
  substeps: of the solver of task families.
  observed: whether `initial` holds the T states before each of the following ones, f32[rows,K,T n]. Models
    that read a sequence then give the next state after every state.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  task: ranges.Choice('families', 'npz') = 'families'
  families: ranges.Many(ranges.Choice(*SYSTEMS)) = ()
  environments: ranges.Count = 8
  spread: ranges.Below1 = 0.1
  draw: ranges.Seed = 0
  trajectories: ranges.Count = 2
  train_trajectories: ranges.Count = 2
  held_out: ranges.Count = 2
  length: ranges.Count = 16
  num_values: ranges.Count = 2
  step: ranges.Positive = 0.1
  substeps: ranges.Count = 4
  observed: ranges.Flag = False
  files: ranges.Many(ranges.Text) = ()
  num_environments: ranges.Natural = 0
  num_families: ranges.Natural = 0
  cache_dir: ranges.Text = ''
  objective: ranges.Choice('dynamics') = 'dynamics'

  kind = 'trajectories'
  targets = 'trajectories'             # what a model must predict

  @property
  def sizes(self) -> tuple[int, int]:
    """The number of environments and of families."""
    if self.task == 'families':
      return len(self.families) * self.environments, len(self.families)
    return self.num_environments, self.num_families

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if field.name not in ('cache_dir', 'objective')}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    several = (rows, self.trajectories)
    first = self.num_values * (self.length if self.observed else 1)
    return {'initial': ((*several, first), np.float32),
            'values': ((*several, self.length * self.num_values), np.float32),
            'weights': (several, np.float32),
            'given/environment': ((rows,), np.int32), 'around': ((rows,), np.int32),
            'family': ((rows, self.sizes[1]), np.float32),
            'shown': ((rows, SHOWN * self.sizes[1]), np.float32)}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: its trajectories."""
    return dict(encoder=self.trajectories, decoder=self.trajectories)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the trajectories; of a run's Record `found` if they are the same."""
    _check(self)
    return Opened(self, found, lambda: _read(self))

  def fits(self, model: typing.Any, aux: dict) -> None:
    """Raises UserError for a model of other environments, trajectories or steps of time than the data's."""
    _check(self)
    wanted = dict(num_environments=self.sizes[0], num_values=self.num_values, length=self.length)
    for field, number in wanted.items():
      if getattr(model, field, number) != number:
        near = f'd_model={number * self.num_values}' if field == 'length' else f'{field}={number}'
        raise errors.UserError(f'model: {field} is {getattr(model, field)}, and the data have {number}; '
                               f'nearest: model.{near}')
    for _, part in modules.offering(model, 'substeps'):
      if part.step != self.step:
        raise errors.UserError(f'experts.step={part.step:g}: states of the data are data.step='
                               f'{self.step:g} apart; nearest: {self.step:g}')
    for _, router in modules.offering(model, 'num_environments'):
      if router.num_environments != self.sizes[0]:
        raise errors.UserError(f'num_environments of a router is {router.num_environments}, and the data '
                               f'have {self.sizes[0]}; nearest: blocks.LETTER.router.num_environments='
                               f'{self.sizes[0]}')


class Opened(arrays.Opened):
  """The opened data; see data/batches.py."""

  def __init__(self, source: Trajectories, found: records.Record, read: typing.Callable):
    super().__init__(source, found, read)
    self._number = source.sizes[0]

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the rows of a split."""
    del name
    return Rows(self._splits[split], self._number, seed if train else None)


class Rows(NamedTuple):
  """Rows of a split: arrays [rows,...] by the names of entries; `number` of environments; a seed or None."""
  arrays: dict
  number: int
  seed: int | None

  def __len__(self):
    return len(self.arrays['values'])

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes row `row` into row `at` of `batch`; rows of one batch are around the same environment."""
    arrays.Rows(self.arrays).fill(batch, at, row, number)
    if self.seed is not None:
      drawn = np.random.default_rng((self.seed, number // self.number))
      batch['around'][at] = drawn.integers(self.number)


def _check(source):
  """Raises UserError for fields that do not go together."""
  if source.task == 'families' and not source.families:
    raise errors.UserError(f'data.families is empty (there are: {", ".join(SYSTEMS)})')
  if source.task == 'families' and source.num_values != 2:
    raise errors.UserError(f'data.num_values={source.num_values}: states of data.families have 2 numbers; '
                           'nearest: 2')
  for field in ('num_environments', 'num_families') if source.task == 'npz' else ():
    if not getattr(source, field):
      raise errors.UserError(f"data.{field}=0: with data.task='npz' it says how many the files have")
  for field in ('train_trajectories', 'held_out') if source.task == 'families' else ():
    number = getattr(source, field)
    if number % source.trajectories:
      near = max(number // source.trajectories, 1) * source.trajectories
      raise errors.UserError(f'data.{field}={number}: rows hold data.trajectories={source.trajectories}; '
                             f'nearest: {near}')


def _read(source):
  """(dict split -> dict name -> array, facts) of a source."""
  parts = _generated(source) if source.task == 'families' else _files(source)
  return {split: _rows(source, split, *part) for split, part in parts.items()}, {}


def _rows(source, split, values, environment, family):
  """Dict name -> array [rows,...] of trajectories values [M,T+1,n], each of an environment and a family."""
  order = np.argsort(environment, kind='stable')
  per_row = source.trajectories
  number = np.bincount(environment, minlength=source.sizes[0])
  bad = np.flatnonzero(number % per_row)
  if bad.size or not number.sum():
    which = f'environment {bad[0]} has {number[bad[0]]}' if bad.size else 'there are none'
    raise errors.UserError(f'data.trajectories={per_row}: trajectories of an environment fill rows, and of '
                           f'{split} {which}; nearest: 1')
  values = values[order].reshape(-1, per_row, *values.shape[1:]).astype(np.float32)
  environment, family = environment[order][::per_row], family[order][::per_row]
  shown = np.zeros((len(values), SHOWN * source.sizes[1]), np.float32)
  for kind in range(source.sizes[1]):
    for place, number in enumerate(np.unique(environment[family == kind])[:SHOWN]):
      shown[np.argmax(environment == number), SHOWN * kind + place] = 1
  first = values[:, :, :-1].reshape(*values.shape[:2], -1) if source.observed else values[:, :, 0]
  return dict(initial=first, values=values[:, :, 1:].reshape(*values.shape[:2], -1),
              weights=np.ones(values.shape[:2], np.float32), around=environment,
              family=np.eye(source.sizes[1], dtype=np.float32)[family], shown=shown,
              **{'given/environment': environment})


def _generated(source):
  """Dict split -> (values [M,T+1,n], environment i32[M], family i32[M]) of task families."""
  parts = {split: ([], [], []) for split in tasks.SPLITS}
  for family, name in enumerate(source.families):
    for number in range(source.environments):
      environment = family * source.environments + number
      rng = np.random.default_rng((source.draw, environment))
      system = SYSTEMS[name]
      factors = rng.uniform(1 - source.spread, 1 + source.spread, len(system.constants))
      for split, count in zip(tasks.SPLITS, (source.train_trajectories, source.held_out)):
        begin = rng.uniform(system.low, system.high, (count, 2))
        values = integrated(source, name, factors * system.constants, begin)
        for kept, new in zip(parts[split], (values, [environment] * count, [family] * count)):
          kept.extend(new)
  whole = lambda numbers: np.array(numbers, np.int32)
  return {split: (np.stack(values), whole(environments), whole(families))
          for split, (values, environments, families) in parts.items()}


def integrated(source: Trajectories, name: str, constants: np.ndarray, state: np.ndarray) -> np.ndarray:
  """Returns f64[M,T+1,2], trajectories of system `name` from states f64[M,2].

  Raises UserError for a trajectory that leaves the range of numbers of 32 bits.
  """
  field = lambda y: np.stack(SYSTEMS[name].field(y[:, 0], y[:, 1], *constants), axis=1)
  states, h = [state], source.step / source.substeps
  with np.errstate(all='ignore'):
    for point in range(source.length):
      for _ in range(source.substeps):
        k1 = field(state)
        k2 = field(state + h / 2 * k1)
        k3 = field(state + h / 2 * k2)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(state + h * k3))
      if not np.isfinite(state.astype(np.float32)).all():
        raise errors.UserError(f'data.step={source.step:g}: a trajectory of {name} leaves the range of '
                               f'numbers in step {point + 1}; nearest: data.step={source.step / 2:g}, or '
                               f'data.substeps={2 * source.substeps}')
      states.append(state)
  return np.stack(states, axis=1)


def _files(source):
  """Dict split -> (values, environment, family), as `_generated`, of the files of a source."""
  paths = arrays.paths(source)
  read = [_file(source, path) for path in paths]
  if len(read) == 2:
    return {split: part for split, (part, _) in zip(tasks.SPLITS, read)}
  [((values, environment, family), split)] = read
  held = arrays.held_out(paths[0], split, len(values)) if split is not None else _last(environment)
  return {name: (values[rows], environment[rows], family[rows])
          for name, rows in zip(tasks.SPLITS, (~held, held))}


def _last(environment):
  """Bool[M]: the second half of the trajectories of each environment, where no split is said."""
  held = np.zeros(len(environment), bool)
  for number in np.unique(environment):
    mine = np.flatnonzero(environment == number)
    held[mine[(len(mine) + 1) // 2:]] = True
  return held


def _file(source, path):
  """((values [M,T+1,n], environment i32[M], family i32[M]), split or None) of an .npz."""
  fields = arrays.read(path)
  values = arrays.numbers(path, 'values', fields[arrays.named(path, fields, 'values')], (3,))
  if values.shape[1:] != (source.length + 1, source.num_values):
    raise errors.UserError(f'{path}: values has the shape {list(values.shape)}; data.length={source.length} '
                           f'and data.num_values={source.num_values} mean [{len(values)}, '
                           f'{source.length + 1}, {source.num_values}]')
  numbers = []
  for name, size in zip(('environment', 'family'), source.sizes):
    number = arrays.whole(path, name, fields[arrays.named(path, fields, name)])
    if number.shape != (len(values),) or number.size and number.max() >= size:
      raise errors.UserError(f'{path}: {name} has the shape {list(number.shape)} and goes to '
                             f'{number.max(initial=0)}; wanted: [{len(values)}], below {size}')
    numbers.append(number)
  if 'times' in fields:
    _steps(source, path, arrays.numbers(path, 'times', fields['times'], (1,)))
  return (values, *numbers), fields.get('split')


def _steps(source, path, times):
  """Raises UserError unless times f32[T+1] are data.step apart."""
  steps = np.diff(times)
  if len(times) != source.length + 1:
    raise errors.UserError(f'{path}: times has {len(times)} entries; wanted: {source.length + 1}')
  wrong = np.flatnonzero(~np.isclose(steps, source.step, rtol=1e-3))
  if wrong.size:
    near = 'times that grow' if steps[wrong[0]] <= 0 else f'data.step={steps[wrong[0]]:g}'
    raise errors.UserError(f'{path}: step {wrong[0]} of times is {steps[wrong[0]]:g}, and data.step='
                           f'{source.step:g}; nearest: {near}')
