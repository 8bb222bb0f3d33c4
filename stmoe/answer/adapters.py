"""One base in a process, and several adapters that answer with it.

  base = adapters.Base('runs/base')
  base.generate(['...'], dict(name='greedy'), 32)
  base.generate(['...'], dict(name='greedy'), 32, adapter='runs/lora')       a run that was fine-tuned from it
  base.generate(['...'], dict(name='greedy'), 32, adapter='downloaded/lora')     a folder of PEFT's layout

The base's arrays are there once. An adapter adds its own, and adapters of one form share compiled programs.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import pathlib
import typing

import jax
import ml_collections
import numpy as np

from stmoe import errors
from stmoe.answer import infer
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import stored
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.decode import generate
from stmoe.derive.conversion import exporting
from stmoe.derive import downloaded
from stmoe.derive.adapter import loaded
from stmoe.derive.adapter import places
from stmoe.derive.adapter import saved
from stmoe.runs import directory as rundir
from stmoe.train import groups
from stmoe.train import state as states

BATCH = 8                                # prompts at once


class Opened(typing.NamedTuple):
  """A base with an adapter, or without one: its configuration, its Blueprint, the adapter's own arrays."""
  cfg: ml_collections.ConfigDict
  plan: states.Blueprint
  part: dict


class Base:
  """A run directory or downloaded folder whose arrays are read once; adapters are read when they are named.

  Raises UserError for a folder that is no run, or has no checkpoint.

  Args:
    path: of the base.
    step: of the checkpoint; None = the newest.
  """

  def __init__(self, path: str | pathlib.Path, step: int | None = None):
    self.path = downloaded.resolved(path)
    reader = exporting.reader_of(self.path, step)
    self.step = reader.step
    cfg, self._record = rundir.opened(self.path, self.step), records.read(self.path)
    self._plans: dict[tuple, states.Blueprint] = {}
    self._digest = saved.digest(places.Places(cfg, None).base(reader.inventory))
    self._plain = Opened(cfg, self._planned(cfg), {})
    folder = self.path / 'checkpoints'
    with contextlib.closing(checkpoint.Checkpoints(folder, keep=None, read_only=True)) as kept:
      _, state, _, _ = kept.restore(self._plain.plan.shapes, check=lambda meta: None, say=lambda line: None,
                                    step=self.step)
    self._params, self._routers = self._plain.plan.evaluated(state), state['router_state']
    self._adapters: dict[pathlib.Path, Opened] = {}
    self._programs: dict[tuple, typing.Callable] = {}

  def model(self, adapter: str | pathlib.Path | None = None) -> typing.Any:
    """Returns the model of the base with an adapter, or without one; all share the base's arrays.

    Args:
      adapter: run directory that was fine-tuned from the base with its matrices frozen, or a folder of PEFT's
        layout.
    Raises:
      UserError: the adapter is of another base.
    """
    opened = self._opened(adapter)
    return opened.plan.model(groups.put(self._params, opened.part), self._routers)

  def generate(self, prompts: Sequence[str], decode: Mapping, length: int,
               adapter: str | pathlib.Path | None = None) -> list[str]:
    """Returns the texts that the base with `adapter` (see `model`) adds to each of `prompts`.

    Args:
      decode: name and fields of a strategy, dict(name='sample', temperature=0.8).
      length: most tokens of a text.
    """
    opened, vocabulary = self._opened(adapter), pipeline.vocabulary(self._plain.cfg, found=self._record)
    program = self._program(opened, generate.ending(decode, opened.cfg, vocabulary), length)
    ids = [infer.tokens(opened.cfg, vocabulary, f'prompt {i}', prompt) for i, prompt in enumerate(prompts)]
    texts: list[str] = []
    params = groups.put(self._params, opened.part)
    for first in range(0, len(ids), BATCH):
      some = ids[first:first + BATCH]
      batch = infer.prompt_batch(opened.cfg, some + [some[-1]] * (BATCH - len(some)),
                                 infer.width(max(map(len, some))))
      key = jax.random.fold_in(states.fold(opened.cfg.seed, 'decode'), first)
      written = np.asarray(program(params, self._routers, batch, key))
      texts += [generate.text(opened.cfg, vocabulary, row) for row in written[:len(some)]]
    return texts

  def _planned(self, cfg):
    """The Blueprint of a configuration, the same for all adapters of a form: they share compiled programs."""
    if _form(cfg) not in self._plans:
      with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
        self._plans[_form(cfg)] = states.blueprint(self._record.located(cfg), mesh)
    return self._plans[_form(cfg)]

  def _program(self, opened, decode, length):
    """The compiled program of a form of model, a strategy and a length."""
    form = (*_form(opened.cfg), str(sorted(decode.items())), length)
    if form not in self._programs:
      self._programs[form] = generate.make(opened.plan, decode, length)
    return self._programs[form]

  def _opened(self, adapter):
    if adapter is None:
      return self._plain
    path = pathlib.Path(adapter).absolute()
    if path not in self._adapters:
      read = self._of_files if loaded.found(path) else self._of_run
      self._adapters[path] = read(path)
    return self._adapters[path]

  def _of_files(self, folder):
    """The Opened of an adapter in a folder of PEFT's layout."""
    adapter = loaded.opened(folder, self.path, step=self.step)
    cfg = adapter.changed(self._plain.cfg)
    part = places.Places(cfg, None).together(adapter.arrays(self._plain.cfg))
    return Opened(cfg, self._planned(cfg), jax.device_put(part, jax.devices()[0]))

  def _of_run(self, run):
    """The Opened of the adapter of a run directory, of whose checkpoint nothing else is read."""
    reader, cfg = exporting.reader_of(run, None), rundir.opened(run)
    found = places.Places(cfg, None)
    digest = saved.digest(found.base(reader.inventory))
    if digest != self._digest:
      raise errors.UserError(f'{run} is an adapter of another base: of digest {digest[:12]}, and {self.path} '
                             f'has {self._digest[:12]}')
    part: dict = {}
    for leaf, words in found.labels.items():
      if 'adapter' in words:
        read = states.evaluated(('params', *leaf), reader.inventory)
        part = groups.put(part, _nested(leaf, stored.read(reader.array(read), ...)))
    return Opened(cfg, self._planned(cfg), jax.device_put(part, jax.devices()[0]))


def _form(cfg):
  """What two configurations have in common whose models are alike but for numbers."""
  return str(cfg.model), str(cfg.blocks)


def _nested(path, value):
  """The nested dict with `value` at `path` alone."""
  for key in reversed(path):
    value = {key: value}
  return value
