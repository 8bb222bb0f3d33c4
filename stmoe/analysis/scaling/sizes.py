"""The sizes of a configuration as the papers of scaling laws count them: columns for a table of runs."""

from stmoe import errors
from stmoe.analysis import flops


def of(config):
  """Returns dict column -> number of a run of `config`; the columns are those of `columns.MEANING`.

  Routers are left out of all sizes. n_dense is what a token uses without embeddings, as experts of a token
  have together the width of the dense layer in every comparison here. granularity is the number of experts
  of a token, which equals d_ff / d_expert there.

  Args:
    config: of an experiment.
  Raises UserError when sparse layers differ in their number of experts.
  """
  found = [m for m in flops.matrices(config) if 'router' not in m.path]
  inner = [m for m in found if 'vocab' not in m.names]
  used = lambda matrices: round(sum(m.size * m.share for m in matrices))
  banks = {(m.shape[m.names.index('expert')], m.share) for m in inner if 'expert' in m.names} or {(1, 1.0)}
  if len(banks) > 1:
    numbers = ', '.join(str(n) for n, _ in sorted(banks))
    raise errors.UserError(f'sparse layers of {numbers} experts: a scaling law '
                           'needs one number')
  experts, share = banks.pop()
  positions = config.train.steps * config.train.batch_size * flops.lengths(config)['decoder']
  return dict(n_dense=used(inner), n_active_incl_emb=used(found),
              n_total_nonemb=sum(m.size for m in inner), tokens=positions, experts=experts,
              granularity=experts * share, expansion=1.0 / share)
