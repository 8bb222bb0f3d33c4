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
# # Sparse upcycling
#
# A dense model is trained already; now there is budget for half as much again. Is it better spent on the
# dense model, on experts that start as copies of its layers (arXiv:2212.05055), or on a sparse model from
# nothing? One seed and a tiny model here; `experiments/upcycling` asks it with three seeds.
#
# *Upcycling* makes a sparse model of a dense one: experts start as copies of its layers. *Surgery* is any
# function from trained parameters to others. All words are in [docs/concepts.md](../docs/concepts.md).

# %%
import os
import pathlib
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes as logical_axes
from stmoe import experiment
from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.analysis import table
from stmoe.analysis.routing import similarity as similarity_view
from stmoe.answer import interactive
from stmoe.derive import upcycle
from stmoe.runs import read as runs_lib
from stmoe.runs import records
from stmoe.surgery import similarity
from stmoe.train import progress

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
WORK = pathlib.Path('runs', '06_smoke' if SMOKE else '06')
DENSE = 6 if SMOKE else 240
MORE = DENSE * 3 // 2
COMMON = {'train.log_every': 3 if SMOKE else 10, 'train.stats_every': 3 if SMOKE else 10,
          'eval.every': 3 if SMOKE else 20, 'eval.batches': 1 if SMOKE else 10, 'checkpoint.every': 1000000}
NAMES = dict(grains='upcycling/stdlib:method=grains', top2='upcycling/stdlib:method=top2',
             dense='upcycling/stdlib:method=dense')

# %% [markdown]
# ## The dense model

# %%
dense = interactive.train(NAMES['dense'], WORK / 'dense', {**COMMON, 'train.steps': DENSE})

# %% [markdown]
# ## The surgery
#
# Two ways to cut a dense layer of width $F$ into experts, both with a gap of nothing at step 0:
#
# * `top2`: 8 experts, each a copy of the whole layer, two per token with weights that add up to 1: the layer
#   itself, for twice its price.
# * `grains`: 16 experts of width $F/2$, each a copy of one half (virtual groups, arXiv:2410.07524); the
#   router takes one of either half, so a token costs what it did.


# %%
def start(method, **surgery):
  cfg, _ = experiment.load(NAMES[method], [f'{field}={value}' for field, value in steps(MORE).items()])
  if not (WORK / method / 'config.json').is_file():
    with interactive.said():
      upcycle.upcycle([dense.path], cfg, WORK / method, progress.make(None, 0), **surgery)
  record = records.ancestry(WORK / method)['facts']
  print(f'{method}: parameters {record["parameters"][0]:,} -> {record["parameters"][1]:,}, loss '
        f'{record["runs"][0]["eval/loss"]:.4f} -> {record["upcycled"]["eval/loss"]:.4f}')


def steps(number):
  return {**COMMON, 'train.steps': number}


start('grains', granularity=2)
start('top2')
if not (WORK / 'dense_more').is_dir():
  shutil.copytree(dense.path, WORK / 'dense_more')                   # goes on where the dense run stopped

# %% [markdown]
# ## Half as much again
#
# Everyone gets the same steps; `top2` pays more FLOPs for each.

# %%
runs = {
    'dense': interactive.train(NAMES['dense'], WORK / 'dense_more', steps(MORE)),
    'upcycled, grains': interactive.train(NAMES['grains'], WORK / 'grains', steps(MORE)),
    'upcycled, top-2': interactive.train(NAMES['top2'], WORK / 'top2', steps(MORE)),
    'grains from nothing': interactive.train(NAMES['grains'], WORK / 'scratch', steps(MORE - DENSE)),
}
rows = [{column: value for column, value in table.values(run).items() if column not in ('time', 'flops')}
        for run in runs.values()]
print(table.plain(*table.cells(table.group(rows, list(runs)))))

# %%
canvas.show(curves.loss(list(runs.values()), list(runs), xs=('step', 'tokens')))

# %% [markdown]
# After the surgery alone, against steps and against the FLOPs spent since:

# %%
figure, axes = canvas.new(1, 2, 9.6, 3.6)
for label in list(runs)[:3]:
  for ax, x in zip(axes[0], ('step', 'flops')):
    at, loss = runs[label].series('eval/bits_per_byte', x)
    after = runs[label].series('eval/bits_per_byte')[0] >= DENSE
    ax.plot(at[after] - at[after][0], loss[after], color=canvas.styles(runs)[label][0], marker='o', ms=4,
            label=label)
    canvas.engineering(ax.xaxis)
    canvas.label(ax, f'{runs_lib.ABSCISSAE[x]} since the surgery', 'validation loss (bits per byte)')
axes[0, 0].legend(frameon=False)
canvas.show(figure)

# %% [markdown]
# ## How copies become experts
#
# The cosine between the weights of any two experts of the last layer. Experts that are copies of one half of
# the dense layer start as one, and so short a training moves them little; but what it adds to each (right) is
# the expert's own.


# %%
def params(name, step=None):
  model, _, _ = interactive.opened(runs[name].path, step)
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


first, end = params('upcycled, grains', DENSE), params('upcycled, grains')
shown = {'at the surgery': first, 'at the end': end, 'what was added': jax.tree.map(jnp.subtract, end, first),
         'from nothing': params('grains from nothing')}
names = logical_axes.names_of(nnx.state(interactive.opened(runs['upcycled, grains'].path)[0], nnx.Param))
layers = {title: list(similarity.experts(weights, names).values())[-1]
          for title, weights in shown.items()}                       # [E, E]
canvas.show(similarity_view.figure(layers))
copies = np.asarray(layers['at the end'])[::2, ::2]                  # of the first half
print(f'copies of one half at the end: mean cosine {copies[np.triu_indices(len(copies), 1)].mean():.3f}')

# %%
canvas.show(curves.load(runs['upcycled, grains']))

# %% [markdown]
# ## The same from the command line
#
# ```sh
# stmoe train upcycling/stdlib:method=dense --workdir runs/dense
# stmoe upcycle runs/dense upcycling/stdlib:method=grains --workdir runs/grains --granularity 2
# stmoe train upcycling/stdlib:method=grains --workdir runs/grains
# ```
#
# ## Questions to try
#
# * From which step on (`DENSE`, `MORE`) does the model from nothing overtake the upcycled one?
# * Noise on the copies: do experts become different sooner, and is that worth anything?
# * Four experts instead of eight: is the gain of `top2` one of experts, or of FLOPs alone?
