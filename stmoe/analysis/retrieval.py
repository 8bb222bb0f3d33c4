"""What a query costs where retrieval is one more expert behind a gate (ExpertRAG, arXiv:2504.08744).

The paper has theory alone, and its formulas are reconstructed (unverified). A gate opens for a share pi of
all queries. Only these pay for a search, and for reading what is found. All costs are FLOPs of a query.
"""

from typing import NamedTuple

from stmoe import errors
from stmoe.analysis import canvas
from stmoe.analysis import flops

CAPTION = ('Expected cost of a query (ExpertRAG) by the share of queries that retrieve. The gate pays for '
           'retrieval where it opens; the dot is where a larger model without retrieval costs the same.')


class Retrieval(NamedTuple):
  """C_index of a search, the number of documents that are read, C_read of one of them."""
  search: float
  documents: int
  read: float

  @property
  def cost(self) -> float:
    """C_index + n_doc C_read, what a query pays that retrieves."""
    return self.search + self.documents * self.read


def parametric(router: float, expert: float, k: float, rest: float = 0.0) -> float:
  """Returns C_router + k C_expert, and the rest of the model, which the paper's formula leaves out.

  >>> parametric(1.0, 10.0, 2), parametric(1.0, 10.0, 2, rest=5.0)
  (21.0, 26.0)
  """
  return router + k * expert + rest


def expected(model: float, share: float, retrieval: Retrieval) -> float:
  """Returns C = C_model + pi (C_index + n_doc C_read); pi = 1 is always-on retrieval.

  Args:
    model: see `parametric`; share: pi, from 0 to 1.

  >>> expected(21.0, 0.5, Retrieval(search=4.0, documents=3, read=2.0))
  26.0
  """
  _check(share)
  return model + share * retrieval.cost


def saving(share: float, retrieval: Retrieval) -> float:
  """Returns (1 - pi) (C_index + n_doc C_read), what the gate saves against always-on retrieval.

  >>> saving(0.25, Retrieval(search=4.0, documents=3, read=2.0))
  7.5
  """
  _check(share)
  return (1 - share) * retrieval.cost


def break_even(budget: float, model: float, retrieval: Retrieval) -> float:
  """Returns the share of queries that may retrieve at a cost of `budget`: at most 1, at least 0.

  >>> break_even(26.0, 21.0, Retrieval(search=4.0, documents=3, read=2.0))
  0.5
  """
  return min(max((budget - model) / retrieval.cost, 0.0), 1.0)


def stored(parameters: float, entries: float, width: float) -> float:
  """Returns how many numbers hold what is known: all parameters, and an index of entries x width.

  >>> stored(100.0, 10.0, 4.0)
  140.0
  """
  return parameters + entries * width


class Model(NamedTuple):
  """FLOPs per token of a configuration's forward: of its routers, of k experts, of all else."""
  router: float
  experts: float
  rest: float

  @property
  def total(self) -> float:
    """The sum."""
    return parametric(self.router, self.experts, 1, self.rest)


def of_configuration(cfg) -> Model:
  """Returns the Model of a configuration, counted as `flops.active_per_token` counts."""
  cost = lambda m: 2.0 * m.multiplied * m.share * m.uses
  matrices = flops.matrices(cfg)
  experts = sum(cost(m) for m in matrices if 'expert' in m.names)
  router = sum(cost(m) for m in matrices if 'router' in m.path and 'expert' not in m.names)
  return Model(router, experts, flops.active_per_token(cfg)['forward'] - router - experts)


def exact_search(entries: float, width: float, per_token: float, documents: int, length: int) -> Retrieval:
  """Returns the Retrieval of a search that compares a query with every entry (our reading of C_index).

  A document of `length` tokens is read by the model itself, at its cost per token.

  >>> exact_search(1000, 8, per_token=50.0, documents=2, length=10)
  Retrieval(search=16000.0, documents=2, read=500.0)
  """
  return Retrieval(2.0 * entries * width, documents, per_token * length)


def draw(model: float, retrieval: Retrieval, larger: float):
  """Returns the Figure of `CAPTION`: costs by pi, of the gate, always and never, and of a `larger` model."""
  figure, axes = canvas.new(1, 1, 5.4, 3.6)
  ax, ends = axes[0][0], (0.0, 1.0)
  always = expected(model, 1.0, retrieval)
  lines = {'gate': [expected(model, share, retrieval) for share in ends], 'always': [always, always],
           'never': [model, model], 'larger model': [larger, larger]}
  styles, handles = canvas.styles(lines), {}
  for name, costs in lines.items():
    colour, dash = styles[name]
    handles[name], = ax.plot(ends, costs, dash, color=colour, lw=1.6)
  at = break_even(larger, model, retrieval)
  ax.plot([at], [expected(model, at, retrieval)], 'o', color=canvas.INK, ms=5)
  canvas.label(ax, 'share of queries that retrieve', 'FLOPs of a query')
  canvas.engineering(ax.yaxis)
  ax.set_ylim(bottom=0)
  canvas.legend(figure, handles)
  return figure


def _check(share):
  if not 0 <= share <= 1:
    raise errors.UserError(f'retrieval: share={share} of the queries is not from 0 to 1; nearest: '
                           f'{min(max(share, 0), 1)}')
