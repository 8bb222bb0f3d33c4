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
# Installs the library where it is not there yet; the only cell that may use the network.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec('stmoe') is None:
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', 'stmoe'], check=True)


# %% [markdown]
# # Fine-tuning and decoding
#
# An ST-MoE language model of the Python standard library writes code by four strategies, and is then
# fine-tuned on a task of one's own: which statement is it, of whose line the first word is missing? The same
# fine-tuning of a model that has hardly been trained shows what the pre-training gave it, if anything. One
# seed, and far less training than a model needs to write well.

# %%
import json
import os
import pathlib
import random

from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.answer import interactive
from stmoe.data.text import corpus

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
WORK = pathlib.Path('runs', '05_smoke' if SMOKE else '05')
COMMON = {'train.batch_size': 8, 'eval.batches': 1 if SMOKE else 10, 'checkpoint.every': 1000000,
          'eval.every': 1000000}

# %% [markdown]
# ## A model, and one that has seen nothing

# %%
START = 'lm/quickstart:method=st_moe'
pretrained = interactive.train(START, WORK / 'pretrained', {**COMMON, 'train.steps': 6 if SMOKE else 240})
untrained = interactive.train(START, WORK / 'untrained', {**COMMON, 'train.steps': 1})

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
  written = interactive.generate(pretrained.path, prompts, strategy, length=8 if SMOKE else 24)
  print('\n'.join(f'{name:9} {prompt!r} -> {text!r}' for prompt, text in zip(prompts, written)))

# %% [markdown]
# ## A task
#
# Objects of `inputs` and `targets` in a file are a task; `choices` are what the model may answer. Lines come
# from files that the pre-training has seen (training) and from those it has not (validation).

# %%
WORDS = ('def', 'for', 'from', 'if', 'raise', 'return')


def examples(split, each):
  lines = [line.split(None, 1) for _, text in corpus.stdlib()[split] for line in text.splitlines()]
  rest = {word: sorted({pair[1] for pair in lines if len(pair) == 2 and pair[0] == word
                        and 8 <= len(pair[1]) < 60}) for word in WORDS}
  return [dict(inputs=f'___ {line}', targets=word, choices=WORDS)
          for word, found in rest.items() for line in random.Random(0).sample(found, each)]


files = []
for split, each in (('train', 300), ('validation', 5 if SMOKE else 36)):
  files.append(WORK / f'{split}.jsonl')
  files[-1].write_text('\n'.join(map(json.dumps, examples(split, each))))
print(files[-1].read_text()[:400])

# %% [markdown]
# ## Fine-tuning
#
# The recipe is ST-MoE's (arXiv:2202.08906, section 5) at three times its learning rate: dropout in experts,
# router losses on.
# `rank` takes the likeliest of the choices, `decode` what the model writes. Chance is one in six.

# %%
TUNING = {'data.jsonl': f'{files[0]},{files[1]}', 'data.inputs_length': 40, 'data.targets_length': 8,
          'train.steps': 4 if SMOKE else 160, 'train.log_every': 2 if SMOKE else 10,
          'train.stats_every': 2 if SMOKE else 10, 'schedule.value': 3e-3,
          'eval.every': 4 if SMOKE else 40, 'eval.batches': 1 if SMOKE else 4, 'eval.batch_size': 48,
          'checkpoint.every': 1000000}
tuned = {name: interactive.finetune(start.path, 'finetune/jsonl', WORK / f'tuned_{name}', TUNING)
         for name, start in dict(pretrained=pretrained, untrained=untrained).items()}
for name, run in tuned.items():
  found = json.loads((run.path / 'results.json').read_text())
  scores = ', '.join(f'{score} {value:.1f}' for score, value in found['scores'].items())
  print(f'{name}: {scores}; trivial system {max(found["baselines"].values()):.1f}')

# %%
figure, axes = canvas.new(1, 2, 9.6, 3.5)
for label, (colour, dash) in canvas.styles(tuned).items():
  for ax, method in zip(axes[0], ('rank', 'decode')):
    ax.plot(*tuned[label].series(f'jsonl/accuracy@{method}'), dash, color=colour, lw=1.8, marker='o', ms=4,
            label=f'from the {label} model')
    ax.axhline(100 / len(WORDS), color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)))
    ax.set_ylim(0, 100)
    canvas.label(ax, 'optimizer steps', f'accuracy (%), {method}')
axes[0, 0].legend(frameon=False, loc='upper left')
canvas.show(figure)

# %%
canvas.show(curves.loss(list(tuned.values()), [f'from the {name} model' for name in tuned], xs=('step',)))

# %% [markdown]
# In the run shown here the start that has hardly been trained ends ahead, at 88 against 84 %: pre-training on
# a quarter of a million tokens lowers the loss of the first steps and gives this task nothing more. Longer
# pre-training is one number above.
#
# ## Does the load change?
#
# The router of ST-MoE before and after: a small task may want few of the experts.

# %%
for run in (pretrained, tuned['pretrained']):
  canvas.show(curves.load(run))

# %% [markdown]
# ## The tuned model answers

# %%
asked = examples('validation', 1)
answers = interactive.generate(tuned['pretrained'].path, [example['inputs'] for example in asked],
                               dict(name='greedy'), length=4)
for example, answer in zip(asked, answers):
  print(f'{example["inputs"]:62} {answer!r:12} ({example["targets"]})')
