"""Programs of two libraries in turn: each in a process of its own, alive between rounds, told when to run."""

import json
import os
import statistics
import subprocess

from stmoe import errors

# Memory as the command `stmoe` has it: large pages, and in training freed memory stays in the process.
PAGES = 'glibc.malloc.hugetlb=1'
KEPT = f'{PAGES}:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**64 - 1}'


class Worker:
  """A process that says a line of JSON when it is ready, and then one for every line that it reads.

  Args:
    command: words; the last is the job as JSON. env: variables beside those of this process.
  facts: what the process said first, dict.
  Raises:
    UserError: the process ended instead, with the last line that it said.
  """

  def __init__(self, command: list[str], env: dict | None = None):
    self.title = ' '.join(command[:2])
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}))
    self.facts = self._heard()

  def run(self, times: int) -> float:
    """Returns the seconds of one of `times` runs."""
    self._process.stdin.write(f'{times}\n')
    self._process.stdin.flush()
    return self._heard()['s']

  def close(self) -> None:
    """Ends the process."""
    for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
      stream.close()
    self._process.wait()

  def _heard(self):
    for line in self._process.stdout:
      if line.startswith('{'):
        return json.loads(line)
    said = self._process.stderr.read().strip().splitlines()
    raise errors.UserError(f'{self.title} ended: {said[-1] if said else "without a word"}')


def in_turn(workers: dict[str, Worker], rounds: int, times: int) -> dict[str, list[float]]:
  """Returns dict name -> seconds of a run in each of `rounds` rounds of `times`; one before warms up."""
  taken = {name: [] for name in workers}
  for _ in range(rounds + 1):
    for name, worker in workers.items():
      taken[name].append(worker.run(times))
  return {name: seconds[1:] for name, seconds in taken.items()}


def compared(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict:
  """Returns what of ours and of theirs is fastest, by medians, and paired ratios of these two.

  dict(ours=name, theirs=name, ratio, low, high): theirs over ours, median, least and most of the rounds.

  >>> compared({'a': [1., 2.]}, {'b': [2., 8.], 'c': [9., 9.]})
  {'ours': 'a', 'theirs': 'b', 'ratio': 3.0, 'low': 2.0, 'high': 4.0}
  """
  best = [min(times, key=lambda name: statistics.median(times[name])) for times in (ours, theirs)]
  ratios = [b / a for a, b in zip(ours[best[0]], theirs[best[1]])]
  return dict(ours=best[0], theirs=best[1], ratio=statistics.median(ratios), low=min(ratios),
              high=max(ratios))
