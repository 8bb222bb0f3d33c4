"""Progress of a long job: a bar with the time left on a terminal, plain lines elsewhere.

Which of them, `silence.display` says.
"""

import contextlib
import sys
import threading
import time

from stmoe import silence

EVERY = 10  # seconds between plain lines
BYTES = 'bytes'                          # the unit whose rate is shown, too


@contextlib.contextmanager
def task(title, total, unit=''):
  """Gives `advance(n)`; `total` (in `unit`) may be None where it is not known."""
  kind = silence.display()
  if kind == 'off':
    yield lambda n: None
  else:
    yield from (_rich if kind == 'rich' else _plain)(title, total, unit)


@contextlib.contextmanager
def patience(title):
  """Says every EVERY seconds that the body still runs, in a plain line: other threads may show a bar."""
  start, done = time.time(), threading.Event()

  def say():
    while not done.wait(EVERY):
      print(f'{title}: {time.time() - start:.0f} s', file=sys.stderr, flush=True)
  if silence.display() != 'off':
    threading.Thread(target=say, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _rich(title, total, unit):
  from rich import console
  from rich import progress
  columns = [progress.TextColumn('{task.description}'), progress.BarColumn(), progress.TaskProgressColumn(),
             *[progress.TransferSpeedColumn()] * (unit == BYTES), progress.TimeElapsedColumn(),
             progress.TimeRemainingColumn()]
  with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
    row = bar.add_task(title, total=total)
    yield lambda n: bar.advance(row, n)


def _plain(title, total, unit):
  start = printed = first = time.time()
  advanced = begun = 0                   # the first piece holds what happens once, such as compilation
  print(f'{title} ...', file=sys.stderr, flush=True)

  def advance(n):
    nonlocal advanced, begun, first, printed
    now = time.time()
    if not advanced:
      first, begun = now, n
    advanced += n
    if now - printed >= EVERY:
      printed = now
      rate = f', {advanced / (now - start) / 1e6:.1f} MB/s' if unit == BYTES else ''
      done, of = f'{advanced:,.0f}', f' of {total:,}' if total else ''
      known = total and advanced > begun
      left = f', {(now - first) / (advanced - begun) * (total - advanced):.0f} s left' if known else ''
      print(f'{title}: {done}{of} {unit}{rate}{left}', file=sys.stderr, flush=True)
  yield advance
  print(f'{title}: done in {time.time() - start:.1f} s', file=sys.stderr, flush=True)
