"""The start of a run that is made of other runs: its first checkpoint, and the record of its parents.

All methods write both here. ancestry.json holds what `records.ancestry` returns. The lineages of
the parents are copied into it, so the record says the whole ancestry when the parents are gone.
"""

from collections.abc import Callable
from collections.abc import Iterable
import pathlib
import shutil

import ml_collections

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import seal
from stmoe.runs import directory as rundir
from stmoe.runs import lineage
from stmoe.runs import metrics_file
from stmoe.runs import records


def unused(workdir: str | pathlib.Path) -> None:
  """Raises UserError where the folder `workdir` holds a run already."""
  used = [*pathlib.Path(workdir).glob('config.json'), *pathlib.Path(workdir).glob('checkpoints/[0-9]*')]
  if used:
    raise errors.UserError(f'{workdir} holds a run already ({used[0].name}); choose another --workdir')


def trained(run: str | pathlib.Path) -> None:
  """Raises UserError where `run` is no run directory, or has no checkpoint."""
  if not (pathlib.Path(run) / 'checkpoints').is_dir():
    rundir.load(run)                     # has the better words for what is no run at all
    raise errors.UserError(f'{run} has no checkpoint yet')


def parent(run: str | pathlib.Path, step: int) -> tuple[dict, list]:
  """Returns (what a lineage says of checkpoint `step` of run directory `run`, the lineage of `run`)."""
  try:
    meta, _ = seal.read(pathlib.Path(run) / 'checkpoints' / str(step))
  except ValueError as error:
    raise errors.UserError(f'checkpoint {step} of {run} cannot be read: {error}') from error
  described = dict(run=str(pathlib.Path(run).absolute()), step=step, config=meta.get('config'),
                   checkpoint=meta.get('digest'),
                   command=lineage.command(records.environment(run).get('command') or ()))
  return described, records.ancestry(run).get('lineage', [])


def imported(folder: str | pathlib.Path, config: str | None) -> tuple[dict, list]:
  """Returns what `parent` does, for a folder of another library; `config`: digest of its configuration."""
  return dict(run=str(pathlib.Path(folder).absolute()), step=None, config=config, checkpoint=None), []


def origin(method: str, options: dict, parents: list[tuple[dict, list]], facts: dict) -> dict:
  """Returns what ancestry.json is to hold.

  Args:
    method:  name; options: dict, both for JSON.
    parents: list of what `parent` or `imported` returns.
    facts:   dict for JSON, what the method found out.
  """
  entries: list[dict] = [dict(method=method, options=options, parents=[], command=lineage.command())]
  described = []
  for made, before in parents:
    first = len(entries)
    described.append(made | dict(made=first if before else None))
    moved = lambda known, by=first: known if known['made'] is None else known | dict(made=known['made'] + by)
    entries += [entry | dict(parents=[moved(known) for known in entry['parents']]) for entry in before]
  entries[0]['parents'] = described
  return files.plain(dict(facts=facts, lineage=entries))


def meta(cfg: ml_collections.ConfigDict, vocabulary: str | None, flops: float = 0.0) -> dict:
  """Returns the meta of a first checkpoint.

  Args:
    vocabulary: digest of the vocabulary; None = not known.
    flops:      that the run starts with: its parents' FLOPs.
  """
  return dict(config=rundir.identity(cfg), vocab=vocabulary, seconds=0.0, flops=flops)


def write(path: pathlib.Path, cfg: ml_collections.ConfigDict, state: dict, position: dict, made: dict, *,
          vocabulary: str | None, step: int = 0, flops: float = 0.0, line: dict | None = None) -> None:
  """Writes the run directory `path` with one checkpoint; the caller owns `path`, which holds no run.

  The checkpoint comes first: without it the folder would be a run from scratch.

  Args:
    state:    training state; position: of the data.
    made:     of `origin`.
    step:     of the checkpoint; vocabulary, flops: see `meta`.
    line:     dict of metrics of this step, the first line of metrics.jsonl; None = there is none.
  """
  saved = checkpoint.Checkpoints(path / 'checkpoints', cfg.checkpoint.every, cfg.checkpoint.keep,
                                 cfg.checkpoint.async_save)
  saved.take_back(-1)                    # what a kill left of an earlier call
  saved.save(step, state, position, meta(cfg, vocabulary, flops))
  saved.close()
  claim(path, cfg, made, step, None if line is None else dict(flops=flops) | line)


def claim(path: pathlib.Path, cfg: ml_collections.ConfigDict, made: dict, step: int = 0,
          line: dict | None = None, say: Callable = print) -> None:
  """Writes what stands beside the first checkpoint, which is there; see `write` for the arguments.

  say: called with a line of text about a damaged line of metrics.
  """
  files.write_json(path / 'ancestry.json', made)
  rundir.claim(path, cfg)
  if line is not None:
    begun = dict(tokens=0, flops=0.0, time=dict(seconds=0.0))
    metrics_file.Metrics(path, step, say).write(step, begun | line)


# What a run keeps of its data, its vocabulary and the library it was imported from.
OWN = ('data.json', 'data', 'vocabulary.model', 'vocabulary', 'imported.json', 'source')


def inherit(path: pathlib.Path, run: str | pathlib.Path, names: Iterable[str] = OWN) -> None:
  """Copies into run directory `path` what `run` keeps of its own, so that `path` does without `run`.

  Of an earlier call that was killed there may be some already.
  """
  for owned in (pathlib.Path(run) / name for name in names):
    if owned.is_dir():
      shutil.copytree(owned, path / owned.name, dirs_exist_ok=True)
    elif owned.is_file():
      shutil.copyfile(owned, path / owned.name)
