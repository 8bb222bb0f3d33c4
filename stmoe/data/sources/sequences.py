"""Sequences of values: windows of trajectories, and the value that follows every value of a window."""

import dataclasses
import typing
from typing import NamedTuple

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
  """Windows of T values of n numbers each: entries `features` f32[rows,T,n], and what follows each value.

  What follows is the entry `values` f32[rows,T n], the same numbers a place on; `weights` f32[rows,T n] is 1.

  files: an .npz for both splits, or one for training and one for validation. Array `values` is [K,time,n], K
    trajectories, or [time,n], a single trajectory. Where num_systems says so, `system` [K] has whole numbers,
    the system of each. `split` [K] may say train or validation. Without `split` every tenth trajectory is
    held out, of a single trajectory the last tenth of its time.
  length: T, values of a window.
  stride: places from the start of a window to the start of the next window; None = T.
  num_values: n, numbers of a value.
  num_systems: systems that trajectories belong to, numbered from 0: the entry given/system i32[rows] for
    routers to read; 0 = this is not said.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  files: ranges.Many(ranges.Text, least=1)
  length: ranges.Count
  num_values: ranges.Count
  stride: ranges.Count | None = None
  num_systems: ranges.Natural = 0
  cache_dir: ranges.Text = ''

  kind = 'sequences'
  targets = 'values'               # what a model must predict

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return dict(files=self.files, num_systems=self.num_systems)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    window, flat = (rows, self.length, self.num_values), (rows, self.length * self.num_values)
    system = {'given/system': ((rows,), np.int32)} if self.num_systems else {}
    return dict(features=(window, np.float32), values=(flat, np.float32), weights=(flat, np.float32)) | system

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row."""
    return dict(encoder=self.length, decoder=self.length)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the windows of the trajectories; those of a run's Record `found` if they are the same."""
    stride = self.stride or self.length
    return arrays.Opened(self, found, lambda: _read(self),
                         lambda trajectories: Windows(trajectories, self.length, stride))


class Windows(NamedTuple):
  """The windows of trajectories of one length: values f32[K,time,n], and system i32[K]."""
  trajectories: dict
  length: int
  stride: int

  @property
  def each(self) -> int:
    """The number of windows of a trajectory; a value must follow the last window."""
    return max((self.trajectories['values'].shape[1] - self.length - 1) // self.stride + 1, 0)

  def __len__(self):
    return len(self.trajectories['values']) * self.each

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes window `row` into row `at` of `batch`; nothing in it is random."""
    del number
    trajectory, window = divmod(row, self.each)
    begin, end = window * self.stride, window * self.stride + self.length
    values = self.trajectories['values'][trajectory]
    batch['features'][at] = values[begin:end]
    batch['values'][at] = values[begin + 1:end + 1].reshape(-1)
    batch['weights'][at] = 1
    if 'given/system' in batch:
      batch['given/system'][at] = self.trajectories['system'][trajectory]


def _read(source):
  """(dict split -> trajectories, facts) of the files of a source."""
  paths = arrays.paths(source)
  splits = [_trajectories(source, path) for path in paths]
  if len(splits) == 2:
    by_split = {split: part for split, (part, _) in zip(('train', 'validation'), splits)}
  else:
    [(part, split)] = splits
    by_split = _divided(source, paths[0], part, split)
  for split, part in by_split.items():
    if part['values'].shape[1] <= source.length:
      time = part['values'].shape[1]
      raise errors.UserError(f'data.length={source.length}: a window needs one value more than its length, '
                             f'and trajectories of {split} have {time}; nearest: '
                             f'data.length={max(time - 1, 1)}')
  return by_split, {}


def _divided(source, path, part, split):
  """Dict split -> trajectories of one file."""
  count, time = part['values'].shape[:2]
  if count > 1 or split is not None:
    return arrays.divided(path, part, arrays.held_out(path, split, count))
  values, cut = part['values'], max(time - max(time // arrays.HELD_OUT, source.length + 1), 0)
  return dict(train=part | dict(values=values[:, :cut]), validation=part | dict(values=values[:, cut:]))


def _trajectories(source, path):
  """(dict(values, system), split or None) of a file."""
  fields = arrays.read(path)
  values = arrays.numbers(path, 'values', fields[arrays.named(path, fields, 'values')], (2, 3))
  values = values[None] if values.ndim == 2 else values
  if values.shape[2] != source.num_values:
    raise errors.UserError(f'data.num_values={source.num_values}, but {path} has values of {values.shape[2]} '
                           f'numbers; nearest: data.num_values={values.shape[2]}')
  part = dict(values=values)
  if source.num_systems:
    system = arrays.whole(path, 'system', fields[arrays.named(path, fields, 'system')])
    if system.shape != values.shape[:1]:
      raise errors.UserError(f'{path}: system has the shape {list(system.shape)}; it must be '
                             f'[{len(values)}]')
    if system.size and system.max() >= source.num_systems:
      raise errors.UserError(f'data.num_systems={source.num_systems}, but {path} has system {system.max()}; '
                             f'nearest: data.num_systems={system.max() + 1}')
    part['system'] = system
  return part, fields.get('split')
