"""How long each instruction of a program took, from a profile: parts that add up to the whole."""

import collections
import pathlib

import jax


def read(folder: pathlib.Path, module: str) -> list[tuple[float, float, str]]:
  """Returns (start, end, name) in ns of every instruction of `module` in the profile in `folder`.

  Args:
    folder: written by `jax.profiler.trace`.
    module: name of the program, such as 'jit_step'.
  """
  profile = jax.profiler.ProfileData.from_file(str(next(folder.rglob('*.xplane.pb'))))
  events = []
  for event in (e for plane in profile.planes for line in plane.lines for e in line.events):
    stats = dict(event.stats)
    if stats.get('hlo_module') == module and 'hlo_op' in stats:
      events.append((event.start_ns, event.start_ns + event.duration_ns, stats['hlo_op']))
  return events


def shared(events: list[tuple[float, float, str]]) -> dict[str, float]:
  """Returns dict name -> ns; the values add up to the time from the first start to the last end.

  Instructions that run at the same time share that time equally. Time in which none is recorded belongs to
  the instruction that ended last: a profile records the thread that started the instruction, and not the
  threads that finish it.

  >>> shared([])
  {}
  >>> shared([(0, 4, 'a'), (2, 4, 'b'), (7, 8, 'c')])
  {'a': 3.0, 'b': 4.0, 'c': 1.0}
  """
  if not events:
    return {}
  edges = sorted([(start, False, i) for i, (start, _, _) in enumerate(events)]
                 + [(end, True, i) for i, (_, end, _) in enumerate(events)])
  taken: dict[str, float] = collections.defaultdict(float)
  running: set[int] = set()
  at, _, last = edges[0]
  for time, ends, i in edges:
    owners = running or {last}
    for owner in owners:
      taken[events[owner][2]] += (time - at) / len(owners)
    at, last = time, i if ends else last
    running = running - {i} if ends else running | {i}
  return dict(taken)
