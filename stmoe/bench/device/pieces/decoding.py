"""Decoding with few and with many experts: a cached step of a small model, see `stmoe/bench/decoding.py`."""

import functools

from stmoe.bench import decoding as bench
from stmoe.bench.device import pending
from stmoe.bench.device import markdown

WORTH = 5
EXPERTS, ROWS = (8, 64, 128), (1, 8, 32)
PROMPT, ROUNDS = 64, 9
COLUMNS = ('batch', 'experts', 'ms a token', 'tokens/s', 'over fewest')


def jobs(dry):
  """Returns a Job for each batch size, which has all numbers of experts."""
  if dry:
    tiny = dict(d_model=16, num_heads=2, head_dim=8)
    return [pending.Job('decoding batch 1', 6, functools.partial(begin, (2,), 1, 4, 1, tiny))]
  half = dict(dtype='bfloat16')
  return [pending.Job(f'decoding batch {rows}', 6, functools.partial(
      begin, EXPERTS, rows, PROMPT, ROUNDS, half)) for rows in ROWS]


def begin(experts, rows, prompt, rounds, model, submit):
  """The Job's `begin`: a future for each number of experts; `model` are fields of the model."""
  futures = {number: submit(functools.partial(bench.programs, number, rows, prompt, False, model))
             for number in experts}
  made = lambda: {number: future.result() for number, future in futures.items()}
  finish = lambda: list(bench.timed(made(), rows, prompt, rounds, model))
  return list(futures.values()), finish


def table(records):
  """Returns a table with a row per batch size and number of experts."""
  cells = lambda row: (row['rows'], row['num_experts'], f'{row["step_ms"]:.2f}',
                       f'{row["tokens_per_s"]:,.0f}', f'{row["over_fewest"]:.2f}')
  return markdown.of(COLUMNS, [cells(row) for record in records.values() for row in record['rows']])
