"""A network that is no stack of blocks, with what is asked of stacks: its state, its layers, its blocks."""

from flax import nnx

from stmoe import modules
from stmoe import router_state as state
from stmoe.core import contract


class Alone(nnx.Module):
  """One network that reports as a layer called `name`: what a model's `stacks` returns in a stack's place.

  Args:
    name:    of its Aux.
    network: a module; its parts may have state across steps.
  """

  def __init__(self, name: str, network: nnx.Module):
    self.name = name
    self.network = network

  def blocks(self) -> list[str]:
    """Returns the names of its blocks: none."""
    return []

  def by_name(self) -> dict[str, nnx.Module]:
    """Returns dict name -> layer: the network itself."""
    return {self.name: self.network}

  def commit(self, aux: dict[str, contract.Aux], offer: str = 'commit') -> None:
    """Lets its parts with state across steps update it from `aux` (see `stmoe.router_state`)."""
    if self.name in aux:
      modules.commit(self.network, aux[self.name], offer)

  def states(self) -> dict:
    """Returns dict name -> dict dotted path -> RouterState, the arrays themselves."""
    flat = nnx.to_flat_state(nnx.state(self.network, state.RouterState))
    return {self.name: {'.'.join(map(str, path)): value[...] for path, value in flat}}
