"""Decoding timed: cached steps against recomputing the text for every token, and few experts against many."""

import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe.decode import ahead

# A language model of two blocks, one sparse, top-1: D = 512, F = 2048.
MODEL = dict(name='lm', vocab_size=256, d_model=512, layers=(('dm', 1),), num_heads=8, head_dim=64)
SHORT, LONG = 4, 20                  # steps of two programs; a step is the difference in time


def measure(experts, batch_sizes, prompt, rounds, recompute=True, note=print):
  """Yields a dict for each number of experts and batch size: ms of a step and tokens per second.

  A step is timed as the difference of programs of LONG and of SHORT steps. So neither the prompt nor
  the start counts. `over_fewest` is the median over rounds of the time over that with the fewest experts.

  Args:
    experts, batch_sizes: numbers, each combined with each.
    prompt:    tokens of every row before the first step.
    rounds:    how often everything is timed, in turn.
    recompute: also time the forward pass over the whole text of prompt + LONG tokens. Without a cache
      every token costs such a pass.
    note:      called with a line of progress.
  """
  for rows in batch_sizes:
    compiled = {}
    for number in experts:
      note(f'batch {rows}, {number} experts: compiling')
      compiled[number] = programs(number, rows, prompt, recompute)
    yield from timed(compiled, rows, prompt, rounds, note=note)


def timed(compiled, rows, prompt, rounds, model=None, note=lambda text: None):
  """Yields what `measure` does for a batch size; `compiled` is a dict number of experts -> its `programs`."""
  times = {number: {name: [] for name in runs} for number, runs in compiled.items()}
  for turn in range(rounds + 1):                                     # the first warms up
    note(f'batch {rows}: round {turn} of {rounds}')
    for number, runs in compiled.items():
      for name, run in runs.items():
        times[number][name].append(_seconds(run))
  step = lambda t: [(a - b) / (LONG - SHORT) for a, b in zip(t['long'][1:], t['short'][1:])]
  fewest = step(times[min(compiled)])
  for number, t in times.items():
    seconds = step(t)
    row = dict(rows=rows, num_experts=number, k=1, prompt=prompt, **_sizes(model), rounds=rounds,
               step_ms=1e3 * statistics.median(seconds), tokens_per_s=rows / statistics.median(seconds),
               over_fewest=statistics.median(a / b for a, b in zip(seconds, fewest)))
    if 'whole' in t:
      whole = statistics.median(t['whole'][1:])
      row |= dict(recompute_ms=1e3 * whole, recompute_tokens_per_s=rows / whole,
                  speedup=whole / statistics.median(seconds))
    yield row


def _sizes(model=None):
  width = (MODEL | (model or {}))['d_model']
  return dict(d_model=width, d_ff=4 * width)


def _seconds(run):
  began = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - began


def _build(num_experts, model):
  d_ff = _sizes(model)['d_ff']
  blocks = dict(d=dict(layer='dense', d_ff=d_ff), m=dict(
      layer='moe', router=dict(name='switch', num_experts=num_experts), experts=dict(name='mlp', d_ff=d_ff)))
  return lookup.recipe('model', MODEL | (model or {}))(blocks=blocks, rngs=nnx.Rngs(0))


def programs(num_experts, rows, prompt, recompute, model=None):
  """Returns dict name -> function without arguments: 'short' and 'long' generation, 'whole' forward pass.

  `model` are fields that differ from MODEL's; the other arguments are as for `measure`.
  """
  model = jax.jit(lambda: _build(num_experts, model))()
  ids = lambda n: jax.random.randint(jax.random.key(1), (rows, n), 1, MODEL['vocab_size'])
  text = lambda n: dict(decoder_input_tokens=ids(n), decoder_segment_ids=jnp.ones((rows, n), jnp.int32),
                        decoder_positions=jnp.tile(jnp.arange(n), (rows, 1)))

  def write(model, batch, steps):
    logits, cache = model.begin(batch, LONG)

    def body(state, fed):
      _, cache = state
      return model.step(fed, jnp.ones(rows, bool), cache), None
    # Tokens that are given, so that every step routes to other experts.
    generated = jax.random.randint(jax.random.key(2), (steps, rows), 1, MODEL['vocab_size'])
    return jax.lax.scan(body, (logits, cache), generated)[0][0]

  def generate(model, batch, steps):
    model.decoder.unroll()
    return ahead.run(write, model, batch, steps)

  compiled = {name: jax.jit(generate, static_argnums=2).lower(model, text(prompt), steps).compile()
              for name, steps in (('short', SHORT), ('long', LONG))}
  generated = text(prompt)
  runs = {name: (lambda run=run: run(model, generated)) for name, run in compiled.items()}
  if recompute:
    forward, whole = jax.jit(lambda model, batch: model(batch, alone=True)[0]), text(prompt + LONG)
    forward = forward.lower(model, whole).compile()
    runs['whole'] = lambda: forward(model, whole)
  return runs


HEADING = (f'{"batch":>6}{"experts":>9}{"ms/step":>10}{"tokens/s":>10}{"over fewest":>13}{"recompute/s":>13}'
           f'{"speedup":>9}')


def line(row):
  """Returns a row of `measure` as a line under HEADING."""
  text = (f'{row["rows"]:6}{row["num_experts"]:9}{row["step_ms"]:10.2f}{row["tokens_per_s"]:10.0f}'
          f'{row["over_fewest"]:13.2f}')
  return text + (f'{row["recompute_tokens_per_s"]:13.1f}{row["speedup"]:9.1f}' if 'speedup' in row else '')
