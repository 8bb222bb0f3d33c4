"""The files of one's own with which a run was trained: env.json names them, with the sha256 of their text."""

import functools
import pathlib
import shlex
import sys

import ml_collections

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import plugins
from stmoe.runs import records


def facts() -> list[dict]:
  """Returns what env.json says of the plugins of this process: kind, name, file and sha256 of each."""
  return [dict(kind=kind, name=plugin.name, file=str(plugin.path).encode(errors='replace').decode(),
               sha256=plugin.sha256) for plugin in plugins.known() for kind in plugin.kinds]


def present(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> None:
  """Raises UserError if a plugin that `cfg` of run directory `path` names is not known to this process.

  The run remembers where the file was; its code is run only if somebody names the file again.
  """
  for plugin in _of_run(path, cfg):
    if not lookup.has(plugin['kind'], plugin['name']):
      raise errors.UserError(f'{path} has the {plugin["kind"]} {plugin["name"]!r} of a file of its own; '
                             f'nearest: --plugin {shlex.quote(plugin["file"])}')


def check(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> None:
  """Does what `present` does, and prints to stderr what `changed` says, once a process."""
  present(path, cfg)
  for line in changed(path, cfg):
    _say(line)


def changed(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> list[str]:
  """Returns a line for each plugin that `cfg` names whose file is not what run `path` was trained with."""
  own = {(kind, plugin.name): plugin for plugin in plugins.known() for kind in plugin.kinds}
  pairs = ((own.get((known['kind'], known['name'])), known.get('sha256')) for known in _of_run(path, cfg))
  return list(dict.fromkeys(f'note: {plugin.path} has changed since {path} was trained with it'
                            for plugin, sha256 in pairs if plugin and sha256 and plugin.sha256 != sha256))


def _of_run(path, cfg):
  """What env.json of run directory `path` says of the plugins that `cfg` names."""
  chosen = {str(value).partition(':')[0] for value in experiment.flatten(cfg).values()}
  return [plugin for plugin in records.environment(path).get('plugins') or () if plugin['name'] in chosen]


@functools.cache
def _say(line):
  print(line, file=sys.stderr)
