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
from stmoe.plugins import kinds
from stmoe.runs import records


def facts() -> list[dict]:
  """Returns what env.json says of the plugins of this process: kind, name, file, sha256, imports of each."""
  places = {place for plugin in plugins.known() for place in plugin.places}
  return [dict(kind=kind, name=plugin.name, file=str(plugin.path).encode(errors='replace').decode(),
               sha256=plugin.sha256, imports=[place for place in plugin.imports if place in places])
          for plugin in plugins.known() for kind in plugin.kinds]


def present(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> None:
  """Raises UserError if a plugin that `cfg` of run directory `path` needs is not known to this process.

  The run remembers where the file was; its code is run only if somebody names the file again.
  """
  absent = [plugin for plugin in _of_run(path, cfg) if not lookup.has(plugin['kind'], plugin['name'])]
  if absent:
    what = ' and the '.join(f'{plugin["kind"]} {plugin["name"]!r}' for plugin in absent)
    files = dict.fromkeys(f'--plugin {shlex.quote(plugin["file"])}' for plugin in absent)
    own = 'a file of its own' if len(files) == 1 else 'files of its own'
    raise errors.UserError(f'{path} has the {what} of {own}; nearest: {" ".join(files)}')


def check(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> None:
  """Does what `present` does, and prints to stderr what `changed` says, once a process."""
  present(path, cfg)
  for line in changed(path, cfg):
    _say(line)


def changed(path: str | pathlib.Path, cfg: ml_collections.ConfigDict) -> list[str]:
  """Returns a line for each plugin that `cfg` needs whose file is not what run `path` was trained with."""
  own = {(kind, plugin.name): plugin for plugin in plugins.known() for kind in plugin.kinds}
  pairs = ((own.get((known['kind'], known['name'])), known.get('sha256')) for known in _of_run(path, cfg))
  return list(dict.fromkeys(f'note: {plugin.path} has changed since {path} was trained with it'
                            for plugin, sha256 in pairs if plugin and sha256 and plugin.sha256 != sha256))


def _of_run(path, cfg):
  """What env.json of run directory `path` says of the plugins that `cfg` names, and that these import."""
  known = records.environment(path).get('plugins') or ()
  chosen = {text.partition(':')[0] for text in _texts(list(experiment.flatten(cfg).values()))}
  found = [plugin for plugin in known if plugin['name'] in chosen]
  for plugin in found:                   # which grows
    found += [other for other in known if other not in found and _place(other) in plugin.get('imports', ())]
  return found


def _place(plugin):
  """The name under which Python has the module of a plugin in env.json, None of an unknown kind."""
  package = kinds.KINDS.get(plugin['kind'])
  return package and f'{package}.{plugin["name"]}'


def _texts(value):
  """Yields the texts in a value of a configuration, also those in tuples and in the mappings of tuples."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, (tuple, list)) or hasattr(value, 'values'):
    for entry in value.values() if hasattr(value, 'values') else value:
      yield from _texts(entry)


@functools.cache
def _say(line):
  print(line, file=sys.stderr)
