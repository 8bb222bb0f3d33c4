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
# # A tour of a router
#
# A router decides which experts see which token. Its answer is data: a list of edges from tokens to experts
# (`stmoe.core.assignment`), which an executor runs. This notebook builds a router of ten lines, looks at its
# edges, trains it, and shows those of published routers for the same tokens.
#
# * *expert*: one of several small networks of a layer; a token passes through few of them
# * *edge*: one choice, a token with an expert and a weight; *load*: the tokens that an expert was sent
# * *capacity*: the slots of an expert for the tokens of a group; *drop*: an edge that found none
#
# All words are in [docs/concepts.md](../docs/concepts.md).

# %%
import os

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from stmoe import lookup
from stmoe.analysis import canvas
from stmoe.analysis.routing import assignment_map
from stmoe.core import assignment
from stmoe.core import losses
from stmoe.core import matching
from stmoe.core import metrics
from stmoe.experts import linear
from stmoe.routers import base
from stmoe.routers import expert_choice
from stmoe.routers import st_moe
from stmoe.routers import switch

SMOKE = os.environ.get('STMOE_SMOKE') == '1'
STEPS = 60 if SMOKE else 600
KINDS, TOKENS, EXPERTS, WIDTH = 4, 32, 4, 16

# %% [markdown]
# ## Tokens
#
# Four kinds of token, each around its own direction, and a task that differs by kind: a token of kind $i$ has
# to become $A_i x$. One linear map cannot do that; four linear experts can, if each kind goes to its own.

# %%
means = jax.random.normal(jax.random.key(0), (KINDS, WIDTH))
maps = jax.random.normal(jax.random.key(1), (KINDS, WIDTH, WIDTH)) / WIDTH ** 0.5


def tokens(key, size):
  kind = jax.random.randint(jax.random.fold_in(key, 0), (1, size), 0, KINDS)                # [G=1, S]
  x = means[kind] + 0.4 * jax.random.normal(jax.random.fold_in(key, 1), (1, size, WIDTH))
  return kind, x, jnp.einsum('gsd,gsdf->gsf', x, maps[kind])


kind, x, _ = tokens(jax.random.key(2), TOKENS)
order = jnp.argsort(kind[0])                                         # sorted, for the eye
kind, x = kind[:, order], x[:, order]
names = [f'kind {i}' for i in np.asarray(kind[0])]

# %% [markdown]
# ## A router
#
# Probabilities, the best expert of each token, and a capacity: an expert takes as many tokens as it has
# slots, first come, first served. `wanted` is what the tokens asked for, `a` what they got.


# %%
def route(w, x, factor=1.25):
  probs = jax.nn.softmax(x @ w, axis=-1)                             # [G, S, E]
  wanted = assignment.from_top_k(probs, k=1)
  a = assignment.cap(wanted, assignment.capacity(x.shape[1], EXPERTS, factor))
  return probs, wanted, a


w = 0.1 * jax.random.normal(jax.random.key(3), (WIDTH, EXPERTS))
_, wanted, a = route(w, x)
print(f'loads {metrics.load(wanted).tolist()}, dropped {float(metrics.drop_frac(wanted, a)):.0%}')

# %% [markdown]
# Its map: a square is a token that an expert takes, darker with the weight of its output, and on it the
# slot. A cross is a token that found no slot: it goes around the layer unchanged.

# %%
canvas.show(assignment_map.figure({'untrained': a}, {'untrained': wanted}, kinds=names, columns=1))

# %% [markdown]
# ## Training it
#
# With linear experts behind it; the router learns by the weights of its edges. Twice: with the balance loss
# of Switch, and without. Without it an expert that is ahead gets more tokens, and gets further ahead.

# %%
execute, optimizer = lookup.executor('einsum'), optax.adam(1e-2)


def objective(params, key, coefficient):
  w, experts = params
  _, x, y = tokens(key, 128)
  probs, wanted, a = route(w, x)
  error = jnp.mean(jnp.square(execute(x, a, experts) - y))
  balance = losses.balance(probs, wanted.expert[..., None], jnp.ones(x.shape[:2], bool))
  return error + coefficient * balance, (error, metrics.load(wanted), metrics.drop_frac(wanted, a))


def train(coefficient):
  def step(state, key):
    grads, seen = jax.grad(objective, has_aux=True)(state[0], key, coefficient)
    updates, slots = optimizer.update(grads, state[1])
    return (optax.apply_updates(state[0], updates), slots), seen

  params = w, linear.Linear(WIDTH, num_experts=EXPERTS, d_ff=WIDTH, rngs=nnx.Rngs(0))
  keys = jax.random.split(jax.random.key(4), STEPS)
  return jax.jit(lambda state: jax.lax.scan(step, state, keys))((params, optimizer.init(params)))


runs = {'with balance loss': train(0.1), 'without': train(0.0)}
for title, (_, (error, load, drops)) in runs.items():
  print(f'{title:18} error {float(error[-20:].mean()):.3f}, dropped {float(drops[-20:].mean()):.0%}, '
        f'busiest expert {float(metrics.max_load_ratio(load[-20:].mean(0))):.2f} x the mean')

# %%
figure, axes = canvas.new(1, 2, 9.6, 3.2)
for ax, (title, (_, (_, load, _))) in zip(axes[0], runs.items()):
  window = max(STEPS // 30, 1)                                       # a mean over some batches
  shares = np.asarray(load).reshape(-1, window, EXPERTS).mean(1) / 128
  ax.stackplot(np.arange(1, len(shares) + 1) * window, shares.T, colors=canvas.PALETTE, alpha=0.85)
  ax.set_ylim(0, 1)
  ax.margins(x=0)
  canvas.label(ax, 'steps', 'share of tokens, by expert', title)
canvas.show(figure)

# %%
maps_of = {title: route(params[0], x)[1:] for title, ((params, _), _) in runs.items()}
canvas.show(assignment_map.figure({title: a for title, (_, a) in maps_of.items()},
                                  {title: wanted for title, (wanted, _) in maps_of.items()}, kinds=names))

# %% [markdown]
# ## How others would decide
#
# The logits of the trained router, some noise on them, and published ways to turn them into edges, with room
# for one slot a token and choice. Each is a function of its file in `stmoe/routers`. Grey tokens have no
# expert: dropped by capacity, or chosen by no expert.

# %%
trained = runs['with balance loss'][0][0][0]
logits = x @ trained + 2.0 * jax.random.normal(jax.random.key(5), (1, TOKENS, EXPERTS))
mask, room = jnp.ones((1, TOKENS), bool), TOKENS // EXPERTS
balanced = matching.auction(logits, mask)
answers = {
    'Switch': switch.switch(logits, mask, room),
    'ST-MoE, top-2': st_moe.st_moe(logits, mask, 2 * room, 2, second_policy='all'),
    'Switch with batch priority': st_moe.st_moe(logits, mask, room, 1, normalize_gates=False,
                                                batch_priority=True),
    'BASE, balanced by auction': base.base(logits, mask, balanced, room),
    'Expert choice': expert_choice.expert_choice(logits, mask, room),
    'Expert choice, two a token': expert_choice.expert_choice(logits, mask, 2 * room),
}
canvas.show(assignment_map.figure({title: a for title, (a, _) in answers.items()}, kinds=names))
for title, (_, aux) in answers.items():
  print(f'{title:27} busiest expert wanted {float(metrics.max_load_ratio(aux.load)):.2f} x the mean, '
        f'{float(aux.metrics["left_behind"]):.0%} of tokens without expert')

# %% [markdown]
# ## What capacity buys
#
# The same noisy logits in many groups: the share of tokens that find no slot, against slots a token.

# %%
factors = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]
many = tokens(jax.random.key(6), 4096)[1].reshape(128, 32, WIDTH) @ trained
many = many + 2.0 * jax.random.normal(jax.random.key(7), many.shape)
figure, axes = canvas.new(1, 1, 6.4, 3.4)
for k, colour in zip((1, 2), canvas.PALETTE):
  wanted = assignment.from_top_k(jax.nn.softmax(many, axis=-1), k)
  slots = [assignment.capacity(32, EXPERTS, k * factor) for factor in factors]
  lost = [metrics.drop_frac(wanted, assignment.cap(wanted, room)) for room in slots]
  axes[0, 0].plot(factors, 100 * np.array(lost), marker='o', ms=4, color=colour, label=f'top-{k}')
axes[0, 0].legend(frameon=False)
canvas.label(axes[0, 0], 'capacity factor: slots a choice', 'dropped choices (%)')
canvas.show(figure)

# %% [markdown]
# ## From here to a model
#
# A router that models can use is such a function in an `nnx.Module`, in a file of your own. Command
# `stmoe check FILE` tests it, `--plugin FILE` trains it. docs/router.md says how.
#
# ## Questions to try
#
# * The coefficient of the balance loss is 0.1. Which is the smallest that still keeps four experts in use?
# * Two choices a token (`k=2` in `route`): does the task get easier, or do the experts only become alike?
# * Six kinds and four experts (`KINDS`): which kinds share an expert?
# * Capacity 0.5 in training, 1.25 afterwards: do dropped tokens teach the router anything?
