"""Drawn behaviours: users of hidden types, items of types and qualities, clicks, and histories of clicks."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data.sources import behaviours


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnBehaviours:
  """Rows as those of source behaviours, of users whose type only their history tells.

  A user has a type, an item a type and a quality q ~ N(0, 1). The item is clicked with probability
  sigmoid(q + 2 [types agree] - 1). A history has the last n of the items that a user clicked; n has a
  geometric law from 0 on with a mean. Users of validation are others than those of training.

  problem:     everything is drawn from this seed.
  num_users:   users of training.
  num_held_out: users of validation.
  rows_per_user: rows of each user.
  num_types, num_items: of items there are num_items - 1, as id 0 stands for none.
  mean:        of the length of a history.
  length, items_per_row, parts: as for behaviours.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  problem: ranges.Seed = 0
  num_users: ranges.Count = 2_000
  num_held_out: ranges.Count = 500
  rows_per_user: ranges.Count = 4
  num_types: ranges.Whole(2, 1000) = 4
  num_items: ranges.Whole(2) = 201
  mean: ranges.NonNegative = 6.0
  length: ranges.Count = 20
  items_per_row: ranges.Count = 8
  parts: ranges.Many(ranges.Natural) = (2,)
  cache_dir: ranges.Text = ''

  kind, targets, files = 'drawn_behaviours', 'values', ()

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if field.name != 'cache_dir'}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    return behaviours.of_rows(rows, self.items_per_row, self.length)

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: its items."""
    return dict(encoder=self.items_per_row, decoder=self.items_per_row)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the rows; of a run's Record `found` if they are the same."""
    return arrays.Opened(self, found, lambda: (_drawn(self), {}))


def _drawn(source):
  """Dict split -> dict name -> array of the rows of a source."""
  rng = np.random.default_rng(source.problem)
  count, total = source.num_items - 1, source.num_users + source.num_held_out
  kind, quality = rng.integers(0, source.num_types, count), rng.normal(size=count)
  of_user = rng.integers(0, source.num_types, total)
  logits = quality + 2.0 * (kind == of_user[:, None]) - 1            # [U, items]
  odds = 1 / (1 + np.exp(-logits))
  sizes = rng.geometric(1 / (1 + source.mean), total) - 1
  num_rows = total * source.rows_per_user
  made = {name: np.zeros(shape, dtype) for name, (shape, dtype) in source.shapes(num_rows).items()}
  user = np.repeat(np.arange(total), source.rows_per_user)
  shown = rng.integers(0, count, made['items'].shape)                # [rows, K]
  made |= dict(items=(shown + 1).astype(np.int32), group=user.astype(np.int32))
  made['values'][:] = rng.random(shown.shape) < odds[user[:, None], shown]
  made['weights'][:] = 1
  made['part'][:] = sum((sizes[user] > limit).astype(int) for limit in source.parts)
  for number, size in enumerate(sizes):
    past = rng.choice(count, min(size, source.length), p=odds[number] / odds[number].sum())
    at = slice(number * source.rows_per_user, (number + 1) * source.rows_per_user)
    made['history'][at, :len(past)], made['history_weights'][at, :len(past)] = past + 1, 1
  cut = source.num_users * source.rows_per_user
  return dict(train={name: array[:cut] for name, array in made.items()},
              validation={name: array[cut:] for name, array in made.items()})
