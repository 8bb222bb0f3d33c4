"""Loss against total size, tokens and granularity, at one expansion rate.

Scaling Laws for Fine-Grained Mixture of Experts (arXiv:2402.07871), eq. 9. N are all non-embedding
parameters without routers. Granularity is G = d_ff / d_expert: a token goes to G experts of d_ff / G. The
expansion rate is E = parameters of all experts over parameters of one dense layer (G E experts). Loss in
nats. The coefficients hold for one expansion rate; E is a column because compute depends on it.
"""

import numpy as np

from stmoe.analysis.scaling import coefficient

SOURCE = 'arXiv:2402.07871, eq. 9'
FORMULA = 'L = c + (g / G^gamma + a) / N^alpha + b / D^beta'
COLUMNS = ('n_total_nonemb', 'tokens', 'granularity', 'expansion')
COEFFICIENTS = dict(
    a=coefficient.Coefficient(1e-2, 1e6, (5.0, 20.0, 100.0), log=True),
    alpha=coefficient.Coefficient(0.01, 2.0, (0.1, 0.2, 0.4)),
    b=coefficient.Coefficient(1e-2, 1e6, (10.0, 30.0, 300.0), log=True),
    beta=coefficient.Coefficient(0.01, 2.0, (0.1, 0.2, 0.4)),
    g=coefficient.Coefficient(1e-3, 1e5, (1.0, 10.0), log=True),
    gamma=coefficient.Coefficient(0.01, 4.0, (0.3, 1.0)),
    c=coefficient.Coefficient(1e-3, 10.0, (0.3, 1.0), log=True))
# Table 1, E = 64.
PUBLISHED = {'e64': dict(a=18.1, alpha=0.115, b=30.8, beta=0.147, g=2.1, gamma=0.58, c=0.47)}
SIZE, HELD = 'n_total_nonemb', ('granularity', 'expansion')
ACTIVE_FLOPS, ROUTER_FLOPS, HEAD = 6.0, 14.0, 64     # c_f, c_r of sec. 5; the width per layer of its models


def predict(coefficients, table):
  """Returns the loss f64[..., R] in nats of runs with columns n_total_nonemb, tokens, granularity f64[R]."""
  k = coefficients
  experts = k['g'] * table['granularity'] ** -k['gamma'] + k['a']
  return k['c'] + experts * table['n_total_nonemb'] ** -k['alpha'] + k['b'] * table['tokens'] ** -k['beta']


def size(table):
  """Returns f64[R]: total size x tokens, which orders runs of one expansion rate by compute."""
  return table['n_total_nonemb'] * table['tokens']


def derived(coefficients):
  """Returns dict(n_exponent): the power of a budget N D that the best size grows with, routers left out."""
  return dict(n_exponent=coefficients['beta'] / (coefficients['alpha'] + coefficients['beta']))


def layers(n, expansion):
  """Returns the (fractional) number of layers of the paper's model of size N: d = 64 layers, d_ff = 4 d."""
  return (n / (HEAD ** 2 * (8.0 * expansion + 4.0))) ** (1.0 / 3.0)


def flops_per_token(n, held):
  """Returns the training FLOPs of a token in the paper's models of size n, routers included (sec. 5)."""
  blocks = layers(n, held['expansion'])
  d = HEAD * blocks
  router = d * held['expansion'] * held['granularity'] * ROUTER_FLOPS
  return (12.0 * d ** 2 * ACTIVE_FLOPS + router) * blocks


def advice(table):
  """Returns lines on what these runs leave open."""
  rates = np.unique(table['expansion'])
  return [] if len(rates) == 1 else [
      f'the law holds for one expansion rate, here are {len(rates)}: fit them apart (--by expansion)']
