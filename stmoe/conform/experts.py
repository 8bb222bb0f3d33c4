"""What every bank of experts must do."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import lookup
from stmoe.conform import execution
from stmoe.conform import generic
from stmoe.core import assignment


def every_executor_agrees(name: str, **fields) -> None:
  """Every executor computes what `einsum` does with the bank, values and gradients."""
  bank = execution.bank(name, **fields)
  for executor in lookup.available('executor'):
    execution.against(executor, execution.made('random', 2, 9), bank)


def arrays_say_whose_they_are(name: str, **fields) -> None:
  """Every array has logical axes; an array of experts has the axis `expert` first, and one entry for each."""
  bank = generic.bank(name, execution.D, execution.E, **fields)
  named = nnx.traversals.flatten_mapping(axes.names_of(nnx.state(bank, nnx.Param)))
  shapes = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(bank, nnx.Param)))
  for path, names in named.items():
    assert names and None not in names, f'{path} has no logical axes; wanted: axes.param'
    if 'expert' in names:
      size = shapes[path].shape[names.index('expert')]
      assert size == execution.E, f'{path} has {size} entries along `expert`, of {execution.E} experts'


def an_expert_reads_its_rows_alone(name: str, **fields) -> None:
  """What an expert gives for a token depends on no other token."""
  bank, x, edges = execution.bank(name, **fields), execution.activations(), execution.made('random', 2, 9)
  a = assignment.cap(edges, execution.S)
  late = np.arange(execution.S) >= execution.S // 2
  y = execution.run(x, a.weight, bank, a, executor='einsum')[0]
  changed = execution.run(jnp.where(late[:, None], x + 1, x), a.weight, bank, a, executor='einsum')[0]
  np.testing.assert_allclose(y[:, ~late], changed[:, ~late], rtol=1e-5, atol=1e-6)
  assert not np.allclose(y[:, late], changed[:, late]), 'nothing depends on the rows'


def every_parameter_has_a_gradient(name: str, **fields) -> None:
  """Every parameter has a finite gradient, not 0."""
  bank, x, a = execution.bank(name, **fields), execution.activations(), execution.made('random', 2, 9)
  dbank = execution.run(x, a.weight, bank, a, executor='einsum')[1][2]
  for path, g in nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(dbank, nnx.Param))).items():
    assert bool(jnp.all(jnp.isfinite(g))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g != 0)), f'the gradient of {path} is 0'


def without_tokens_it_is_finite(name: str, **fields) -> None:
  """Experts without any token give no NaN, values and gradients."""
  bank, x, a = execution.bank(name, **fields), execution.activations(), execution.made('nothing', 2, 9)
  y, gradients = execution.run(x, a.weight, bank, a, executor='einsum')
  assert not y.any(), 'rows without experts are not 0'
  for g in jax.tree.leaves(gradients):
    assert bool(jnp.all(jnp.isfinite(g))), 'a gradient is not finite'
