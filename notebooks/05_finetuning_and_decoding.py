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
# # Fine-tuning and decoding
#
# An ST-MoE language model of the Python standard library writes code by four strategies, and is then
# fine-tuned on a task of one's own: how does a line of code end? The same steps from a start that has hardly
# been trained show what the pre-training is worth, over three seeds.
#
# * *start*: the run whose parameters a fine-tuning begins with
# * *loss*: nats a token of the endings that are wanted; *accuracy*: the share of tokens that are likeliest
# * *load*: the tokens that each expert is sent
#
# All words are in [docs/concepts.md](../docs/concepts.md).

# %%
import json
import os
import pathlib
import random

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.answer import interactive
from stmoe.data.text import corpus

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
WORK = pathlib.Path('runs', '05_smoke' if SMOKE else '05')
SEEDS = range(1 if SMOKE else 3)
COMMON = {'eval.batches': 1 if SMOKE else 10, 'checkpoint.every': 1000000, 'eval.every': 1000000}

# %% [markdown]
# ## A model, and one that has seen one batch

# %%
START = 'lm/quickstart:method=st_moe'
STEPS = {'trained': 6 if SMOKE else 240, 'untrained': 1}
starts = {name: interactive.train(START, WORK / name, {**COMMON, 'train.steps': steps})
          for name, steps in STEPS.items()}

# %% [markdown]
# ## Four ways to write
#
# While decoding every token is routed by itself and nothing is dropped. Contrast (arXiv:2405.14507) compares
# the usual pass with one through experts that the router did not choose.

# %%
STRATEGIES = {'greedy': dict(name='greedy'), 'sample': dict(name='sample', temperature=0.8, top_p=0.9),
              'beam': dict(name='beam', beams=4), 'contrast': dict(name='contrast', beta=0.5)}
prompts = ['def __init__(self', 'import ', '    if not isinstance(']
for name, strategy in list(STRATEGIES.items())[:2 if SMOKE else None]:
  written = interactive.generate(starts['trained'].path, prompts, strategy, length=8 if SMOKE else 24)
  print('\n'.join(f'{name:9} {prompt!r} -> {text!r}' for prompt, text in zip(prompts, written)))

# %% [markdown]
# ## A task
#
# Objects of `inputs` and `targets` in a file are a task. Here a line of code is cut in the middle. Lines come
# from files that the pre-training has seen (training) and from those that it has not (validation).


# %%
def examples(split, number):
  lines = {line.strip() for _, text in corpus.stdlib()[split] for line in text.splitlines()}
  words = [line.split(' ') for line in sorted(lines) if 24 <= len(line) < 64 and line.count(' ') >= 3]
  for line in random.Random(0).sample(words, number):
    middle = len(line) // 2
    yield dict(inputs=' '.join(line[:middle]), targets=' ' + ' '.join(line[middle:]))


files = []
for split, number in (('train', 60 if SMOKE else 1200), ('validation', 12 if SMOKE else 240)):
  files.append(WORK / f'{split}.jsonl')
  files[-1].write_text('\n'.join(map(json.dumps, examples(split, number))))
print(files[-1].read_text()[:400])

# %% [markdown]
# ## Fine-tuning
#
# The recipe is ST-MoE's (arXiv:2202.08906, section 5): its learning rate, dropout in experts, router losses
# on. Both starts get the same steps on the same examples.

# %%
TUNING = {'data.jsonl': f'{files[0]},{files[1]}', 'data.inputs_length': 24, 'data.targets_length': 24,
          'train.steps': 4 if SMOKE else 40, 'train.log_every': 2 if SMOKE else 10,
          'train.stats_every': 2 if SMOKE else 10, 'eval.every': 2 if SMOKE else 20,
          'eval.batches': 1 if SMOKE else 4, 'eval.batch_size': 48, 'eval.methods': '()',
          'checkpoint.every': 1000000}
tuned = {name: [interactive.finetune(start.path, 'finetune/jsonl', WORK / f'{name}_{seed}',
                                     {**TUNING, 'seed': seed}) for seed in SEEDS]
         for name, start in starts.items()}
for name, runs in tuned.items():
  for key in ('eval/loss', 'eval/accuracy'):
    ends = [float(run.last(key)) for run in runs]
    print(f'{name:9} start, {key}: {np.mean(ends):.3f}, seeds from {min(ends):.3f} to {max(ends):.3f}')

# %%
figure, axes = canvas.new(1, 2, 9.6, 3.5)
for label, (colour, dash) in canvas.styles(tuned).items():
  for seed, run in enumerate(tuned[label]):
    for ax, key in zip(axes[0], ('eval/loss', 'eval/accuracy')):
      ax.plot(*run.series(key), dash, color=colour, marker='o', ms=4,
              label=None if seed else f'from the {label} start')
for ax, title in zip(axes[0], ('loss of endings (nats a token)', 'accuracy of their tokens')):
  canvas.label(ax, 'optimizer steps', title)
axes[0, 0].legend(frameon=False)
canvas.show(figure)

# %% [markdown]
# The trained start ends two nats a token ahead, in every seed. Seeds differ in the order of the examples and
# in dropout. There is one start of each kind.
#
# ## Does the load change?
#
# The router of ST-MoE before and after: a small task may want few of the experts.

# %%
for run in (starts['trained'], tuned['trained'][0]):
  canvas.show(curves.load(run))

# %% [markdown]
# ## Questions to try
#
# * Which is the smallest number of steps of pre-training that still helps?
# * Does the untrained start catch up with ten times the steps of fine-tuning?
# * What is left if only the experts train, or all but them (`train.trainable=expert`, `non_expert`)?
# * Which keyword is missing at the beginning of a line? Such a task is easier: does it need a trained start?
