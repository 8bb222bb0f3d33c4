"""The command line of the kit, `python -m stmoe.bench.device`; see the package."""

import argparse
import fnmatch
import pathlib
import signal
import sys

from stmoe import errors
from stmoe import ranges
from stmoe.bench.device import kit
from stmoe.bench.device import readme


class _Parser(argparse.ArgumentParser):
  """Whose complaints are UserErrors, one line."""

  def error(self, message):
    text = message.removeprefix('argument ').replace(': ', ' ', 1)
    raise errors.UserError(f'{text}; see {self.prog} --help')


def main(argv=None):
  """Returns the exit code: 0; 1 if a job failed; 2 for a mistake; 128 + the number of a signal."""
  try:
    return _run(_arguments(argv))
  except errors.UserError as error:
    print(f'stmoe: {" ".join(str(error).split())}', file=sys.stderr)
    return 2


def _arguments(argv):
  parser = _Parser('python -m stmoe.bench.device', allow_abbrev=False)
  parser.add_argument('--out', type=pathlib.Path, help='of the results; what is there is not done again')
  parser.add_argument('--budget', type=ranges.Count, default=480, help='seconds (default: 480)')
  parser.add_argument('--only', default='*', metavar='PATTERN,...',
                      help="jobs whose name is like one of these: 'layers *,products tgmm *'")
  parser.add_argument('--dry', action='store_true', help='tiny shapes on a CPU: does everything work?')
  parser.add_argument('--list', action='store_true', help='show what would be done, and do nothing')
  parser.add_argument('--tables', type=pathlib.Path, metavar='DIR', help='only write DIR/README.md')
  args = parser.parse_args(argv)
  if (args.out is None) == (args.tables is None):
    raise errors.UserError('the kit needs --out DIR, or --tables DIR alone')
  return args


def _run(args):
  if args.tables:
    print('\n'.join(map(str, readme.write(args.tables))))
    return 0
  like = lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in args.only.split(','))
  one = kit.Kit(args.out, args.budget, args.dry, like, lambda text: print(text, flush=True))
  if not one.jobs:
    raise errors.UserError(f'--only {args.only!r} is like no job; --list shows them')
  if args.list:
    for job, state, seconds, fits in one.plan():
      print(f'{job.name:32}{state:9}{seconds:6.0f} s  {"" if fits else "next call"}')
    return 0
  return _work(one, args.out)


def _work(one, folder):
  """Runs the Kit, and writes the page whatever happens."""
  def stop(number, frame):
    raise kit.Stopped(number)
  before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
  code = 0
  try:
    left = one.run()
  except kit.Stopped as stopped:
    left, code = [job.name for job in one.measured.missing(one.jobs)], stopped.code
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if one.measured.path.exists():
    print('\n'.join(map(str, readme.write(folder))))
  if left:
    print(f'{len(left)} of {len(one.jobs)} jobs are left, which the same command does: {", ".join(left)}')
  failed = [name for name in left if one.measured.state(name) == 'failed']
  return code or (1 if failed else 0)


if __name__ == '__main__':
  sys.exit(main())
