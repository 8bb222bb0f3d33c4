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
# # Where tokens go
#
# A small Mixtral is trained on the Python standard library, and asked which expert takes which token. Then
# the same for checkpoints of other libraries: the model is written in the format of Hugging Face and read
# back, and its routing is the same, token for token. At the end, a downloaded folder is asked as it is.
#
# An *expert* is one of several small networks of a layer, of which a token passes through few. The *router*
# chooses them. All words are in [docs/concepts.md](../docs/concepts.md).

# %%
import json
import os
import pathlib
import shutil

import stmoe
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.analysis.routing import choices as routing
from stmoe.analysis.routing import text as routing_view
from stmoe.analysis.routing import token_kinds
from stmoe.answer import interactive
from stmoe.data import batches as pipeline
from stmoe.derive import convert

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
WORK = pathlib.Path('runs', '03_smoke' if SMOKE else '03')
STEPS = 6 if SMOKE else 240

# %% [markdown]
# ## A model
#
# The sizes are those of a `config.json`; the family says what they mean here: every layer has 8 experts, a
# token goes to two of them, nothing is dropped.

# %%
family = lookup.module('family', 'mixtral')
sizes = dict(vocab_size=2048, hidden_size=128, num_attention_heads=2, num_hidden_layers=4, rms_norm_eps=1e-6,
             num_local_experts=8, num_experts_per_tok=2, intermediate_size=128, router_aux_loss_coef=0.01,
             rope_theta=10000.0)
cfg, _ = experiment.load('lm/quickstart', [f'train.steps={STEPS}', 'train.batch_size=8', 'eval.batches=10',
                                           'eval.every=1000000', 'checkpoint.every=1000000'])
with cfg.unlocked(), cfg.ignore_type():
  for name, section in family.configure(sizes, tied=False).items():
    cfg[name] = section
run = interactive.train_config(cfg, WORK / 'mixtral')

# %%
canvas.show(curves.load(run))

# %% [markdown]
# ## Text, coloured by expert
#
# The colour of a token is its first expert, the bar below it the second.


# %%
def route(path, length=2000):
  model, config, vocabulary = interactive.opened(path)
  batch = pipeline.eval_batches(config)[0]
  chosen = routing.choices(model, batch)
  return chosen, routing_view.sample(chosen, batch, vocabulary, length)


chosen, samples = route(run.path)
last = list(samples)[-1]
canvas.show(routing_view.figure({layer: samples[layer] for layer in (list(samples)[0], last)}, length=240))

# %% [markdown]
# ## What experts specialise in
#
# The tokens that each expert of the last layer takes more often than chance (token, count, times chance):

# %%
for expert, (share, best) in enumerate(samples[last].table):
  print(f'expert {expert}, {share:4.0%}:  ' + '   '.join(
      f'{routing_view.visible(text)!r} {count} {lift:.1f}x' for text, count, lift in best[:6]))

# %% [markdown]
# By kind of token: of all keywords, all names, all brackets, which share goes to which expert? The bits are
# what the expert tells of the kind (0 = nothing).

# %%
canvas.show(token_kinds.figure(samples))

# %% [markdown]
# ## An imported checkpoint
#
# Command `stmoe convert` writes safetensors with the names of Hugging Face, and reads them. From then on an
# imported model is a run like any other: for `stmoe eval`, `infer`, `finetune`, `report`, and this notebook.
# This model's vocabulary is our own, so `data.vocab` names it; downloaded ones bring theirs.

# %%
if not (WORK / 'export').is_dir():
  with interactive.said():
    step, name, tensors = convert.write(run.path, WORK / 'export', to='mixtral')
  print(f'{len(tensors)} tensors of the family {name}, from step {step}')
shutil.rmtree(WORK / 'imported', ignore_errors=True)
data = ['data.task=stdlib', f'data.vocab={cfg.data.vocab}', f'data.length={cfg.data.length}']
with interactive.said():
  convert.read(WORK / 'export', WORK / 'imported', [*data, 'eval.batch_size=16'])
described = json.loads((WORK / 'export' / 'config.json').read_text())
print('config.json:', {field: described[field] for field in ('model_type', *sizes) if field in described})

# %%
theirs, seen = route(WORK / 'imported')


def first(found):
  return [taken[0][0] for row in found.experts for taken in row if taken]


for layer, found in theirs.items():
  same = sum(a == b for a, b in zip(first(found), first(chosen[layer])))
  print(f'{layer}: {len(first(found))} tokens routed, {same} of them to the same first expert as in the run '
        'that was exported')
canvas.show(routing_view.figure({layer: seen[layer] for layer in list(seen)[-1:]}, length=120))

# %% [markdown]
# ## A downloaded model
#
# A folder as it was downloaded may stand wherever a run does: it is converted once, into the user's cache.
# This one is a tiny OLMoE with its own `tokenizer.json`, trained on Tiny Shakespeare, a file of a checkout's
# tests. Where there is no checkout, the model imported above stands in for it.
# For the released model, **one line changes**, the first of the next cell:
#
# ```python
# DOWNLOADED = pathlib.Path('OLMoE')     # after: hf download allenai/OLMoE-1B-7B-0924 --local-dir OLMoE
# ```
#
# The released model was not tried here: it has 6.9B parameters, 28 GB of memory in float32.

# %%
DOWNLOADED = pathlib.Path(stmoe.__file__).parents[1] / 'tests' / 'data' / 'checkpoints' / 'with_text_olmoe'
if not DOWNLOADED.is_dir():
  DOWNLOADED = WORK / 'imported'
  print('no checkout is here: the model that was imported above is asked')
TEXT = '''HAMLET:
To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them. To die: to sleep;
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to, 'tis a consummation
Devoutly to be wish'd.
'''
theirs, config, vocabulary = interactive.opened(DOWNLOADED)
batch = interactive.batch(config, vocabulary, TEXT)
samples = routing_view.sample(routing.choices(theirs, batch), batch, vocabulary)
last = list(samples)[-1]
canvas.show(routing_view.figure(samples, length=200))

# %% [markdown]
# What experts of its last layer take more often than chance, and how the model goes on with a text:

# %%
for expert, (share, best) in enumerate(samples[last].table):
  print(f'expert {expert}, {share:4.0%}:  ' + '   '.join(
      f'{routing_view.visible(text)!r} {count} {lift:.1f}x' for text, count, lift in best[:6]))
print(interactive.generate(DOWNLOADED, ['HAMLET:\nGood morrow, neighbour'], dict(name='greedy'), 16))

# %% [markdown]
# ## Questions to try
#
# * Is an expert about tokens or about what they mean? Write the same word in several places of `TEXT`.
# * Which layer tells most of the kind of a token? Compare `token_kinds.figure` of all layers.
# * What becomes of a text without its first choices of experts? `stmoe routing RUN` says it.
# * Fine-tune the imported model on a text of yours (`stmoe finetune`): which experts change?
