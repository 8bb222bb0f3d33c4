"""A training step that is compiled and held with its state, to be run and timed."""

import typing

import jax

from stmoe.data import batches as pipeline
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps


class Step:
  """The compiled training step of a configuration, its state and the first batch of its data, on one device.

  cfg, plan, state, batch, compiled: the configuration, its Blueprint, what `train.state.init` makes, what is
  on the device, and the program (state, batch) -> (state, report).
  """

  def __init__(self, cfg):
    self.cfg = cfg
    with self.mesh() as mesh:
      self.plan = states.blueprint(cfg, mesh)
      self.state, do_step = states.init(cfg, self.plan), steps.make(cfg, self.plan)
      self.batch = check.place(next(pipeline.train_iterator(cfg)), mesh)
      self.compiled = do_step.lower(self.state, self.batch).compile()

  def run(self) -> None:
    """Takes one step and waits for its end."""
    self.state, report = self.compiled(self.state, self.batch)
    jax.block_until_ready((self.state, report))

  def mesh(self) -> typing.ContextManager:
    """Returns the context in which the step runs."""
    return states.on_mesh(self.cfg.mesh, jax.devices()[:1])
