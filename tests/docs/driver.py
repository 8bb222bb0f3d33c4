"""Runs the steps of a page in this process, `python driver.py STEPS.json`: commands of stmoe, and Python."""

import json
import pathlib
import subprocess
import sys

from stmoe.cli import main


def run(steps):
  """Runs [kind, what]: 'python' code in one namespace, 'command' words of a shell; ends at what fails."""
  names = {'__name__': 'page'}
  for kind, what in steps:
    print('>>>', what if kind == 'command' else what.splitlines()[0], flush=True)
    if kind == 'python':
      exec(compile(what, 'page', 'exec'), names)
      continue
    if code := main.main(what[1:]) if what[0] == 'stmoe' else _program(what[1:]):
      sys.exit(f'{what}: exit code {code}')


def _program(words):
  """The exit code of `python WORDS`."""
  return subprocess.run([sys.executable, *words], check=False).returncode


if __name__ == '__main__':
  run(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')))
