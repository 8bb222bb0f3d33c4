"""The sizes of a configuration as the papers of scaling laws count them: columns for a table of runs."""

from stmoe.analysis import flops


def of(config):
  """Returns dict column -> number of a run of `config`; the columns are the keys of `columns.MEANING`.

  Routers are left out of all sizes. n_dense is what a token uses without embeddings: a token's experts have
  together the width of the dense layer in every comparison here. granularity is the number of experts of a
  token, which is d_ff / d_expert then. Where sparse layers differ in their experts, columns of experts are
  left out.

  Args:
    config: of an experiment.
  """
  found = [m for m in flops.matrices(config) if 'router' not in m.path]
  inner = [m for m in found if 'vocab' not in m.names]
  used = lambda matrices: round(sum(m.size * m.share for m in matrices))
  banks = {(m.shape[m.names.index('expert')], m.share) for m in inner if 'expert' in m.names} or {(1, 1.0)}
  counted = dict(n_dense=used(inner), n_active_incl_emb=used(found),
                 n_total_nonemb=sum(m.size for m in inner))
  if len(banks) > 1:
    return counted
  experts, share = banks.pop()
  return counted | dict(experts=experts, granularity=experts * share, expansion=1.0 / share)
