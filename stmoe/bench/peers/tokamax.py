"""tokamax's `ragged_dot`, which chooses its own kernel and takes tiles from its own tables."""

import importlib.util

import jax


def missing():
  if importlib.util.find_spec('tokamax') is None:
    return 'tokamax is not installed (pip install tokamax)'
  return 'tokamax has no kernel for CPUs' if jax.default_backend() == 'cpu' else ''


def variant(problem, floor):
  from absl import flags, logging
  import tokamax
  flags.FLAGS.mark_as_parsed()             # else tokamax reads the command line
  logging.set_verbosity(logging.ERROR)     # else tokamax warns of every shape its tables lack
  from stmoe.bench import by_product
  return by_product.variant(problem, floor, lambda x, w, sizes: tokamax.ragged_dot(x, w, group_sizes=sizes))
