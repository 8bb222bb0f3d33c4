"""Is a weak expert with a strong one better than either, and does the confidence say who should answer?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.weak_strong import sweep
from stmoe.sweep import collect

ACCURACY = 'eval/accuracy'
TENTHS = range(10)                       # of the confidence, as the target counts them
SURE = 5                                 # the tenths from here on are of a confidence of 1/2 and more


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name, ACCURACY)
  claims = [('Mowst better than its GCN alone', 'mowst', 'gcn'),
            ('Mowst better than its MLP alone', 'mowst', 'mlp'),
            ('Mowst* better than its GCN alone', 'mowst_star', 'gcn'),
            ('Mowst* better than its MLP alone', 'mowst_star', 'mlp'),
            ('Mowst* better than the same mixture of two GCNs', 'mowst_star', 'two_gcn')]
  told = [verdict.exceeds(claim, of(a), of(b), better='higher') for claim, a, b in claims]
  return told + [verdict.exceeds('Mowst: the MLP is right more often where the confidence is above 1/2',
                                 right_by_confidence(results, TENTHS[SURE:]),
                                 right_by_confidence(results, TENTHS[:SURE]), better='higher')]


def right_by_confidence(results, tenths):
  """Returns dict seed -> share of nodes with a confidence in `tenths` that Mowst's MLP has right."""
  return {one.seed: _share(one.row, tenths) for one in results if one.name == 'mowst'}


def _share(row, tenths):
  """The mean over nodes of these tenths; None where the row has no such nodes."""
  column = lambda tenth, name: row.get(f'eval/tenth_{tenth}_{name}') or 0.0
  nodes = sum(column(tenth, 'nodes') for tenth in tenths)
  right = sum(column(tenth, 'nodes') * column(tenth, 'weak') for tenth in tenths)
  return right / nodes if nodes else None


def figures(results):
  """Returns the accuracy of every model, and of Mowst's experts by the confidence."""
  accuracy = {name: collect.values(results, name, ACCURACY) for name in sweep.NETWORKS}
  by_tenth = lambda expert: {
      (tenth + 0.5) / len(TENTHS): collect.values(results, 'mowst', f'eval/tenth_{tenth}_{expert}')
      for tenth in TENTHS}
  return dict(accuracy=drawing.points(accuracy, 'accuracy on test nodes'),
              confidence=drawing.curves({'MLP': by_tenth('weak'), 'GCN': by_tenth('strong')},
                                        "Mowst's confidence in the MLP", 'accuracy on such nodes'))
