"""Figures and tables of runs whose target is no text: its own losses, units and columns."""

import pathlib

from stmoe.analysis import curves
from stmoe.analysis import measures
from stmoe.analysis import table
from stmoe.analysis.report import leaderboard
from stmoe.runs import read as runs


def run(loss, **metrics):
  named = {name.replace('_', '/', 1): value for name, value in metrics.items()}
  lines = [dict({name: value / step for name, value in named.items()}, step=step, tokens=step, flops=step)
           for step in (1, 2, 3)]
  return runs.Run(path=pathlib.Path(), name='run', config=dict(loss=loss), env={}, lines=lines, loads={},
                  states={}, done=None)


VALUES = run(dict(name='values'), loss_mse=4.0, eval_loss=5.0, eval_rmse=2.0)
TEXT = run(dict(z=1e-4), loss_ce=4.0, eval_loss=5.0, eval_perplexity=9.0, eval_accuracy=0.5)


def test_the_loss_of_training_is_the_targets_own():
  drawn = curves.loss([VALUES]).axes[0]
  assert drawn.get_ylabel() == 'loss (squared error)'
  assert [len(line.get_xdata()) for line in drawn.lines] == [3, 3]   # training and validation
  assert curves.loss([VALUES, TEXT]).axes[0].get_ylabel() == 'loss'
  assert measures.unit([TEXT]) == 'nats per token'


def test_a_table_has_columns_for_what_the_target_measures():
  headings, rows = table.cells(table.group([table.values(VALUES)], ['a']))
  assert dict(zip(headings, rows[0])) | {'loss': '1.67', 'rmse': '0.667'} == dict(zip(headings, rows[0]))
  headings, _ = table.cells(table.group([table.values(TEXT)], ['b']))
  assert 'loss' not in headings and headings[-2:] == ['perplexity', 'accuracy']
  headings, rows = table.cells(table.group([table.values(VALUES), table.values(TEXT)], ['a', 'b']))
  assert rows[1][headings.index('rmse')] == '–' == rows[0][headings.index('accuracy')]


def test_a_distilled_run_has_the_measures_of_what_it_wraps():
  config = dict(name='teacher', run='gone', inner=dict(name='ids'))
  assert measures.first(run(config), 'loss/') == 'loss/ce'


def test_a_leaderboard_ranks_runs_of_one_target_only():
  headings, rows = leaderboard.columns([VALUES, TEXT], {}, ['a', 'b'])
  assert 'loss' in headings and 'rmse' in headings and 'data' in headings
  assert not any(cell.kind == 'best' for cells in rows.values() for cell in cells)
  assert 'loss (squared error)' in leaderboard.columns([VALUES], {}, ['a'])[0]
  assert 'loss (nats)' in leaderboard.columns([TEXT], {}, ['b'])[0]
