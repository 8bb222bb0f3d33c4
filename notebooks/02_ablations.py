# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# Finds the library, or installs it: from a checkout around this notebook, else a clone of REPOSITORY at TAG.
# Only this cell may use the network.
REPOSITORY = ''                                  # address of the project's git repository
TAG = 'v0.1.0'

import importlib.util
import pathlib
import site
import subprocess
import sys

if importlib.util.find_spec('stmoe') is None:
  here = pathlib.Path.cwd()
  around = [folder for folder in (here, *here.parents) if (folder / 'stmoe' / 'api.py').is_file()]
  if not around:
    if not REPOSITORY:
      raise RuntimeError('stmoe is not installed, and no checkout is around this notebook: give REPOSITORY '
                         'the address of the project, or install a wheel of stmoe and run this cell again')
    around = [here / f'stmoe-{TAG}']
    subprocess.run(['git', 'clone', '-q', '--depth', '1', '--branch', TAG, REPOSITORY, around[0]], check=True)
  plugins = dict(cuda12='jax_cuda12_plugin', cuda13='jax_cuda13_plugin', tpu='libtpu')
  renewed = [f'jax[{kind}]' for kind, plugin in plugins.items() if importlib.util.find_spec(plugin)]
  # JAX and its plugin for an accelerator fit one another only if both are renewed together.
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '-e', around[0], *renewed], check=True)
  site.main()                                    # what was just installed is found without a restart


# %% [markdown]
# # Ablations of balance and capacity
#
# A Switch layer (top-1, 8 experts) in a language model of the Python standard library: what the balance loss
# does to load and loss, what replaces it, and what capacity costs in training and in evaluation. Everything
# but one field is equal between runs. **One seed, half a minute a run:** the figures show mechanisms, they
# do not rank methods. `experiments/` asks such questions with three seeds and gives a verdict.
#
# * *balance loss*: a term that is smallest when load and mean probability of the experts are even
# * *capacity*: the slots of an expert; *drops*: the share of choices that found none
# * *max load*: the fullest expert over the mean of its layer; 1 is balanced
#
# All words are in [docs/concepts.md](../docs/concepts.md).

# %%
import os
import pathlib

from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.analysis import figures
from stmoe.analysis import table
from stmoe.answer import interactive
from stmoe.answer import score
from stmoe.experiments import figures as drawing
from stmoe.runs import directory as rundir

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
WORK = pathlib.Path('runs', '02_smoke' if SMOKE else '02')
SWITCH = 'lm/quickstart:method=switch'
COMMON = {'train.steps': 6 if SMOKE else 160, 'train.batch_size': 8, 'train.log_every': 2 if SMOKE else 5,
          'train.stats_every': 2 if SMOKE else 4, 'eval.every': 1000000, 'eval.batches': 1 if SMOKE else 20,
          'checkpoint.every': 1000000, 'checkpoint.keep': 1}

# %% [markdown]
# ## The balance loss
#
# $\alpha E \sum_e f_e P_e$ (arXiv:2101.03961, section 2.2) at four coefficients $\alpha$, and loss-free
# balancing (arXiv:2408.15664), which has no such loss but a bias on the choice that follows the load. Its
# layer is its paper's, many narrow experts, one of them shared, nothing dropped: of its curves only the
# balance is to be compared with the others.

# %%
COEFFICIENTS = [0.0, 0.01] if SMOKE else [0.0, 0.001, 0.01, 0.1]
runs = {f'α = {alpha}': interactive.train(SWITCH, WORK / f'alpha_{alpha}', {
    **COMMON, 'losses.balance': (alpha, 'mean')}) for alpha in COEFFICIENTS}
runs['loss-free'] = interactive.train('lm/quickstart:method=loss_free_balancing', WORK / 'loss_free', COMMON)
print(table.plain(*table.cells(table.group([table.values(run) for run in runs.values()], list(runs)))))

# %%
canvas.show(curves.health(list(runs.values()), list(runs)))

# %% [markdown]
# The share of tokens of each expert, step by step: orange is overloaded, purple starved.

# %%
for label in ('α = 0.0', 'α = 0.01'):
  print(label)
  canvas.show(curves.load(runs[label]))

# %% [markdown]
# Loss-free balancing from inside: an expert with too many tokens has its bias lowered by a fixed step.

# %%
for figure in figures.draw(runs['loss-free']).values():
  canvas.show(figure)

# %% [markdown]
# Balance is a means: dropped tokens and idle experts cost loss, and so may a coefficient that is too large.
# Switch is evaluated with two slots a token.

# %%
canvas.show(curves.final({label: [run.last('eval/bits_per_byte')] for label, run in runs.items()}))

# %% [markdown]
# ## Capacity
#
# Slots a token: in training they cost time and memory, in evaluation they can be changed at no cost of
# training. Three models, each evaluated at several capacities.

# %%
FIELD = 'blocks.m.router.capacity_factor'
TRAINED = [0.5, 1.25] if SMOKE else [0.5, 1.25, 2.0]
EVALUATED = [0.5, 2.0] if SMOKE else [0.5, 0.75, 1.0, 1.5, 2.0]
models = {factor: interactive.train(SWITCH, WORK / f'capacity_{factor}', {
    **COMMON, FIELD: (factor, 2.0)}) for factor in TRAINED if factor != 1.25}
models = dict(sorted({**models, 1.25: runs['α = 0.01']}.items()))    # which has the usual capacity


def evaluate(run, trained):
  texts = [str((trained, factor)) for factor in EVALUATED]
  found = score.sweep(rundir.load(run.path), run.path, FIELD, texts, say=lambda line: None)
  return {value[1]: metrics for value, _, metrics in found}


results = {trained: evaluate(run, trained) for trained, run in models.items()}

# %%
lines = {f'trained at {trained}': {at: {0: metrics['eval/bits_per_byte']} for at, metrics in found.items()}
         for trained, found in results.items()}
canvas.show(drawing.curves(lines, 'capacity factor of evaluation', 'validation loss (bits per byte)'))

# %%
canvas.show(curves.health(list(models.values()), [f'trained at {factor}' for factor in models]))

# %% [markdown]
# ## Questions to try
#
# * Does α = 1.0 still train? What does it do to the loss, and to the load?
# * How far apart are the final losses of two seeds (`'seed': 1` in `COMMON`)? Which differences above
#   are larger?
# * A model trained at capacity 0.5 and evaluated at 2.0: where does its gain come from?
#
# ## Further
#
# * another field: `stmoe show lm/quickstart:method=switch` lists all of them, a misspelt one is an error
# * another router: `method=gshard`, `st_moe`, `deepseek_moe`, `hash`, ... (`stmoe list`)
# * seeds and verdicts: `stmoe sweep capacity_factor`, `stmoe sweep loss_free`, then `--report`
