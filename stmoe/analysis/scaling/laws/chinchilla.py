"""Loss against model size and tokens: an irreducible loss and a power law of each size.

Training Compute-Optimal Large Language Models (arXiv:2203.15556), approach 3. Loss in nats.
"""

from stmoe.analysis.scaling import coefficient

SOURCE = 'arXiv:2203.15556, approach 3'
FORMULA = 'L = e + a / N^alpha + b / D^beta'
COLUMNS = ('n', 'tokens')
COEFFICIENTS = dict(
    e=coefficient.Coefficient(1e-3, 10.0, (0.5, 1.0, 2.0), log=True),
    a=coefficient.Coefficient(1e-2, 1e7, (10.0, 100.0, 1000.0), log=True),
    alpha=coefficient.Coefficient(0.01, 2.0, (0.1, 0.2, 0.4)),
    b=coefficient.Coefficient(1e-2, 1e7, (10.0, 100.0, 1000.0), log=True),
    beta=coefficient.Coefficient(0.01, 2.0, (0.1, 0.2, 0.4)))
# hoffmann: app. D.3, N with embeddings (from secondary sources, unverified). dense: the dense baseline of
# arXiv:2402.07871, table 1, N non-embedding. joint_e*: arXiv:2502.05172, table 4: its law at a fixed number
# of experts, N active with embeddings.
_ROW = lambda e, a, alpha, b, beta: dict(e=e, a=a, alpha=alpha, b=b, beta=beta)
PUBLISHED = {
    'hoffmann': _ROW(1.69, 406.4, 0.34, 410.7, 0.28),
    'dense': _ROW(0.47, 16.3, 0.126, 26.7, 0.127),
    'joint_e1': _ROW(1.3637, 30.3640, 0.1817, 53.9838, 0.1965),
    'joint_e2': _ROW(1.3637, 27.7982, 0.1780, 66.8401, 0.2065),
    'joint_e4': _ROW(1.3637, 24.8462, 0.1731, 87.7022, 0.2192),
    'joint_e8': _ROW(1.3637, 21.8330, 0.1676, 119.9126, 0.2338),
    'joint_e16': _ROW(1.3637, 19.0159, 0.1617, 167.5073, 0.2494),
    'joint_e32': _ROW(1.3637, 16.5424, 0.1557, 234.6726, 0.2652),
}
SIZE, HELD = 'n', ()


def predict(coefficients, table):
  """Returns the loss f64[..., R] in nats of runs with columns n, tokens f64[R]."""
  k = coefficients
  return k['e'] + k['a'] * table['n'] ** -k['alpha'] + k['b'] * table['tokens'] ** -k['beta']


def size(table):
  """Returns f64[R]: training FLOPs, 6 N D."""
  return 6.0 * table['n'] * table['tokens']


def derived(coefficients):
  """Returns dict(n_exponent): the power of the budget that the best model size grows with."""
  return dict(n_exponent=coefficients['beta'] / (coefficients['alpha'] + coefficients['beta']))


def flops_per_token(n, held):
  """Returns 6 N, forward and backward."""
  return 6.0 * n


def advice(table):
  """Returns [], as these runs leave nothing open that the rank of the fit would not tell."""
  return []
