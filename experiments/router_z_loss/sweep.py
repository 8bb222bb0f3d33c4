"""ST-MoE's router with and without its z-loss, at learning rates up to one that should be too high."""

from stmoe.experiments import sizes

RATES = (0.004, 0.016, 0.064)
COEFFICIENTS = (0.0, 1e-3)


def runs(size='small'):
  """Yields a run per learning rate, coefficient and seed."""
  return sizes.runs(size, {name(rate, z): ('method=st_moe', {'schedule.peak': rate, 'losses.z': (z, 'mean')})
                           for rate in RATES for z in COEFFICIENTS})


def name(rate, z):
  """Returns the name of the runs with this learning rate and coefficient of the z-loss."""
  return f'rate_{rate}_z_{z}'
