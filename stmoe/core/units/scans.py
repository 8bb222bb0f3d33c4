"""What a scan of a traced program is given, told by shapes: releases of JAX name its parameters otherwise."""

from jax.extend import core


def ends(eqn: core.JaxprEqn) -> tuple[int, int]:
  """Returns (end of the constants, end of what the loop carries) among the inputs of the equation of a scan.

  Behind these are the arrays [L,...] of all turns. They have one axis more than in the scan's body, and so
  have the results that the body reports.
  """
  body, axes = eqn.params['jaxpr'].jaxpr, lambda x: len(x.aval.shape)
  deeper = lambda outside, inside: sum(axes(x) > axes(y) for x, y in zip(outside, inside, strict=True))
  over = len(eqn.invars) - deeper(eqn.invars, body.invars)
  return over - (len(eqn.outvars) - deeper(eqn.outvars, body.outvars)), over
