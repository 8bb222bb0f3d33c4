"""Tables of synthetic runs: losses drawn from a law around published coefficients."""

import numpy as np

from stmoe import lookup

NOISE = 0.003
_GRIDS = {
    'clark': dict(n_dense=np.geomspace(15e6, 1.5e9, 6), experts=2.0 ** np.arange(10)),
    'chinchilla': dict(n=np.geomspace(7e7, 1e10, 7), tokens=np.geomspace(1e9, 1e12, 7)),
    'fine_grained': dict(n_total_nonemb=np.geomspace(1e8, 4e9, 5), tokens=np.geomspace(1e10, 1.3e11, 4),
                         granularity=2.0 ** np.arange(5), expansion=np.array([64.0])),
    'joint': dict(n_active_incl_emb=np.geomspace(8e7, 4e9, 4), tokens=np.geomspace(1e9, 2e11, 4),
                  experts=2.0 ** np.arange(0, 9)),
    'power': dict(x=np.geomspace(1e7, 1e9, 12)),
}


def columns(name):
  """Returns dict column -> f64[R] of a sweep over all columns of law `name`."""
  crossed = np.meshgrid(*_GRIDS[name].values(), indexing='ij')
  return dict(zip(_GRIDS[name], (values.reshape(-1) for values in crossed)))


def draw(name, published, seed=0, noise=NOISE):
  """Returns (law, table, coefficients): a sweep with losses of the published law, noise on their logs."""
  law = lookup.module('law', name)
  coefficients = {key: law.PUBLISHED[published][key] for key in law.COEFFICIENTS}
  table = columns(name)
  size = len(next(iter(table.values())))
  errors = noise * np.random.default_rng(seed).standard_normal(size)
  return law, dict(table, loss=law.predict(coefficients, table) * np.exp(errors)), coefficients


def write(path, table):
  """Writes the table as a CSV file; returns its path."""
  rows = [','.join(table), *(','.join(repr(float(v)) for v in row) for row in zip(*table.values()))]
  path.write_text('\n'.join(rows) + '\n')
  return path
