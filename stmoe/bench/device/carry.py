"""Fetches the wheels that a machine without a network lacks, and checks what must be carried there.

  python -m stmoe.bench.device.carry --have LIST --out .wheels --limit 64

LIST is what `python3 -m pip list` or `pip freeze` printed on that machine, or names alone. Fetched is what
this project needs and LIST does not have, for that machine's Python, with what the wheels need themselves.
Versions of LIST are taken as they are; what wants another version is named. Then the sizes are added up: of
the wheels and of the files of this checkout that git does not ignore. On that machine, in this checkout:

  python3 -m pip install --no-index --no-deps .wheels/*.whl
  python3 -m pip install --no-index --no-deps --no-build-isolation -e .
"""

import argparse
import configparser
import email
import pathlib
import re
import subprocess
import sys
import zipfile

from packaging import markers
from packaging import requirements
from packaging import utils

from stmoe import errors

ROOT = pathlib.Path(__file__).resolve().parents[3]
MIB = 2**20
GLIBC = (28, 27, 24, 17, 12, 5)          # of manylinux_2_N, newest first, that wheels are looked for
TESTS = ('pytest',)                      # what the kit needs beside the project's own requirements


def main(argv=None):
  """Returns the exit code: 0, or 2 with a line where something is missing or does not fit."""
  parser = argparse.ArgumentParser('python -m stmoe.bench.device.carry')
  parser.add_argument('--have', type=pathlib.Path, required=True, help='what pip list printed there')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / '.wheels', help='default: .wheels')
  parser.add_argument('--limit', type=float, default=64, help='MiB, of all that is carried (default: 64)')
  parser.add_argument('--python', default='3.12', help='of that machine (default: 3.12)')
  parser.add_argument('--machine', default='x86_64', help='of that machine (default: x86_64)')
  args = parser.parse_args(argv)
  try:
    have = listed(args.have.read_text(encoding='utf-8'))
    files = fetch(needed(), have, args.out, args.python, args.machine)
    return report(files, tree(ROOT), args.limit)
  except (errors.UserError, OSError) as error:
    print(f'stmoe: {" ".join(str(error).split())}', file=sys.stderr)
    return 2


def needed():
  """Returns the requirements, texts, of the project's core and of the kit."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg', encoding='utf-8')
  return [*filter(None, setup['options']['install_requires'].splitlines()), *TESTS]


def listed(text):
  """Returns dict name -> version, '' where the text has none, of what `pip list` or `pip freeze` printed.

  >>> listed('jax      0.11.2'), listed('Rouge_Score==0.1')
  ({'jax': '0.11.2'}, {'rouge-score': '0.1'})
  """
  rows = re.findall(r'^([A-Za-z0-9][\w.-]*)(?:(?: *==|[ \t]+) *v?(\d\S*))?(?:[ \t].*)?$', text, re.M)
  return {utils.canonicalize_name(name): version for name, version in rows if name != 'Package'}


def fetch(wanted, have, folder, python, machine):
  """Downloads into `folder` the wheels of what is `wanted` and not in `have`; returns their paths.

  Raises UserError for a package without such a wheel.
  """
  environment = markers.default_environment() | dict(
      python_version=python, python_full_version=f'{python}.0', sys_platform='linux', platform_system='Linux',
      platform_machine=machine, extra='')
  queue, found = [requirements.Requirement(text) for text in wanted], {}
  while queue:
    want = queue.pop()
    name = utils.canonicalize_name(want.name)
    if not _meant(want, want.extras, environment):
      continue
    if name in have:
      if have[name] and not want.specifier.contains(have[name], prereleases=True):
        print(f'note: {want} is wanted, and that machine has {have[name]}')
    elif name not in found:
      found[name] = wheel(want, folder, python, machine)
      queue += needs(found[name], want.extras, environment)
  return list(found.values())


def wheel(want, folder, python, machine):
  """Downloads the wheel of a requirement; returns its path. Raises UserError if there is none."""
  folder.mkdir(parents=True, exist_ok=True)
  spelled = f'{want.name}{want.specifier}'
  tags = [*(f'manylinux_2_{n}' for n in GLIBC), 'manylinux2014']
  platforms = [word for tag in tags for word in ('--platform', f'{tag}_{machine}')]
  before = set(folder.iterdir())
  words = ['--no-deps', '--only-binary=:all:', '--implementation', 'cp', '--python-version', python,
           *platforms, '-d', str(folder), spelled]
  done = subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', *words], text=True,
                        capture_output=True, check=False)
  plain = utils.canonicalize_name(want.name)
  mine = [path for path in folder.glob('*.whl') if utils.parse_wheel_filename(path.name)[0] == plain]
  if done.returncode or not mine:
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    raise errors.UserError(f'{spelled}: no wheel for Python {python} on {machine}: {"".join(last)}')
  new = [path for path in mine if path not in before]
  for path in mine if new else ():
    if path not in new:
      path.unlink()                      # an older version: two of one package cannot be installed
  return (new or mine)[0]


def needs(path, extras, environment):
  """Returns the Requirements that a wheel's metadata has for these extras."""
  with zipfile.ZipFile(path) as archive:
    [name] = [name for name in archive.namelist() if re.fullmatch(r'[^/]+\.dist-info/METADATA', name)]
    metadata = email.message_from_bytes(archive.read(name))
  wanted = [requirements.Requirement(text) for text in metadata.get_all('Requires-Dist') or ()]
  kept = [want for want in wanted if _meant(want, extras, environment)]
  for want in kept:
    want.marker = None                   # it may name an extra of this wheel
  return kept


def _meant(want, extras, environment):
  """Whether the marker of a requirement, if it has one, holds with one of the `extras` or without any."""
  return want.marker is None or any(
      want.marker.evaluate(environment | {'extra': extra}) for extra in ('', *extras))


def tree(root):
  """Returns dict path -> bytes of the files below `root` that git does not ignore."""
  words = ['git', '-C', str(root), 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
  listing = subprocess.run(words, capture_output=True, check=False)
  if listing.returncode:
    raise errors.UserError(f'{root} is no checkout of git, so what is carried is not known')
  paths = [root / name for name in listing.stdout.decode().split('\0') if name]
  return {path: path.stat().st_size for path in paths if path.is_file()}


def report(wheels, files, limit):
  """Prints the sizes of the wheels and of the checkout; returns 0, or 2 if they are over `limit` MiB."""
  sizes = {path: path.stat().st_size for path in wheels}
  for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
    print(f'{size / MIB:8.1f} MiB  {path.name}')
  own = sum(size for path, size in files.items() if path not in sizes)
  total = (own + sum(sizes.values())) / MIB
  print(f'{own / MIB:8.1f} MiB  the checkout\n{total:8.1f} MiB  together, of {limit:g}')
  if total > limit:
    raise errors.UserError(f'{total:.1f} MiB are over {limit:g}; nearest: leave out what is large')
  return 0


if __name__ == '__main__':
  sys.exit(main())
