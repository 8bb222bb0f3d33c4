"""What every mixer of several tasks must do: a state of each task, of a row by itself."""

from flax import nnx
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import by_itself
from stmoe.conform import generic
from stmoe.core import contract

B, D, H, TASKS = 8, 5, 6, 3
OF_MIXERS = dict(num_experts=3, groups=((0, 2), (1,)))


@generic.cached
def _build(name, **fields):
  known = generic.known(lookup.constructor('mixer', name), OF_MIXERS | fields)
  return lookup.recipe('mixer', dict(name=name) | known)(D, H, TASKS, rngs=nnx.Rngs(0))


def _run(mixer, x, mask, **fields):
  ctx = contract.Context(**contract.numbered(mask[:, None]), step=jnp.int32(0),
                         tokens=jnp.sum(mask, dtype=jnp.float32), **fields)
  return *mixer(x, ctx), True


_X = np.random.default_rng(1).normal(size=(B, D)).astype(np.float32)
_MIXER = by_itself.Kind(__name__, _build, _run, _X, mask=np.arange(B) % 3 != 1)


def answers(name: str, **fields) -> None:
  """It returns (states f32[B,K,H], dict layer name -> Aux) for every one of its levels."""
  mixer = _build(name, **fields)
  y, aux, _ = by_itself.call(_MIXER, mixer, _MIXER.x)
  assert y.shape == (B, TASKS, H) and y.dtype == jnp.float32, (
      f'states are {y.dtype}{list(y.shape)}; wanted: float32{[B, TASKS, H]}')
  wrong = [layer for layer, report in aux.items() if not isinstance(report, contract.Aux)]
  assert not wrong, f'{wrong[0]} reports a {type(aux[wrong[0]]).__name__}; wanted: Aux'
  missing = set(mixer.names()) - set(aux)
  assert not missing, (f'nothing is reported of level {sorted(missing)[0]} (there are: '
                       f'{", ".join(sorted(aux))})')


def loads_are_of_real_rows(name: str, **fields) -> None:
  """Loads count real rows alone: one or more weights of a row, and none of padding."""
  _, aux, _ = by_itself.call(_MIXER, _build(name, **fields), _MIXER.x)
  for layer, report in aux.items():
    load = np.asarray(report.load)
    assert np.isfinite(load).all() and (load >= 0).all() and load.sum() > 0, (
        f'the load of {layer} is {load.tolist()}; wanted: sums of weights over real rows')


(padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
 evaluation_draws_nothing) = by_itself.checks(_MIXER)
