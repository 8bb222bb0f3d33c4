"""Imported run directories, written, opened, run and exported."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as theirs

from stmoe import lookup
from stmoe import router_state
from stmoe.analysis.routing import choices as routing
from stmoe.checkpoints import checkpoint
from stmoe.derive import convert
from stmoe.interop import fields
from stmoe.interop import rules
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir
from stmoe.train import state as states

GREEDY = 10                              # ids of the recorded cases


def save(folder, hf, tensors):
  """Writes the checkpoint folder of a config.json and `tensors`, dict name -> array."""
  folder.mkdir()
  theirs.save_file(tensors, folder / 'model.safetensors', metadata=dict(format='pt'))
  (folder / 'config.json').write_text(json.dumps(hf))


def assert_equal(a, b):
  """Two checkpoint folders have the same tensors, byte by byte."""
  a, b = files.tensors(a), files.tensors(b)
  assert sorted(a) == sorted(b) and all(files.equal(a[name], tensor) for name, tensor in b.items())


def assert_comes_back(path, model_type):
  """`path`/run is exported as `path`/in was, and also where nothing of the import is remembered."""
  convert.write(path / 'run', path / 'out')
  assert (path / 'out' / 'config.json').read_bytes() == (path / 'in' / 'config.json').read_bytes()
  (path / 'run' / 'imported.json').unlink()
  convert.write(path / 'run', path / 'described', to=model_type)
  for name in ('out', 'described'):
    assert_equal(path / name, path / 'in')


def assert_goes_on(model, prompt, logits):
  """With caches, `model` adds to `prompt` i32[B,T] the ids with the largest of logits(ids) [B,T,V]."""
  said = np.asarray(cached(model, row('decoder', prompt)))           # [B, GREEDY]
  wanted = logits(np.concatenate([prompt, said], axis=1))[:, prompt.shape[1] - 1:-1].argmax(-1)
  np.testing.assert_array_equal(said, wanted)


def ids(rows, length):
  """Returns random i32[rows,length] of the 40 that tiny models have, special ones left out."""
  return np.random.default_rng(7).integers(3, 40, (rows, length)).astype(np.int32)


def logits(model, ids):
  """Returns f32[B,T,V] of ids i32[B,T] without padding."""
  return np.asarray(jax.jit(lambda model, inputs: model(inputs)[0])(model, row('decoder', ids)))


def load(path):
  """Returns (config, model) of the newest checkpoint of run directory `path`, on one device."""
  cfg = rundir.load(path)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)
    _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
    saved.close()
  return cfg, plan.model(state['params'], state['router_state'])


def row(stack, ids, real=None):
  """Returns the arrays of one stack of a batch for ids i32[B,T]; `real` 1 where there is no padding."""
  ids = jnp.asarray(ids)
  segments = jnp.ones_like(ids) if real is None else jnp.asarray(real)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  return {f'{stack}_input_tokens': ids, f'{stack}_segment_ids': segments, f'{stack}_positions': positions}


def batch(case):
  """Returns our batch of a recorded case's inputs."""
  if 'in_decoder_input_ids' not in case:
    return row('decoder', case['in_input_ids'], case['in_attention_mask'])
  return (row('encoder', case['in_input_ids'], case['in_attention_mask'])
          | row('decoder', case['in_decoder_input_ids']))


def choices(model, inputs):
  """Returns per sparse layer [B,T] lists of (expert, weight), the encoder's layers first."""
  return [found.experts for _, found in sorted(routing.choices(model, inputs).items(), key=_order)]


def _order(item):
  return item[0].startswith('decoder'), item[0]


def greedy(model, case):
  """Returns i32[B,GREEDY] ids by argmax, everything computed again for each, EOS or not."""
  decoder_only = 'greedy_prompt' in case
  first = () if decoder_only else np.full((len(case['in_input_ids']), 1), model.start_id, np.int32)
  start = case['greedy_prompt'] if decoder_only else first
  length = start.shape[1] + GREEDY
  fixed = {} if decoder_only else {k: v for k, v in batch(case).items() if k.startswith('encoder')}
  ids = np.zeros((len(start), length), np.int32)                     # what comes later is not seen
  ids[:, :start.shape[1]] = start
  forward = jax.jit(lambda model, inputs: model(inputs)[0])
  for at in range(start.shape[1], length):
    # Where later tokens would take part in what is dropped, they are not there.
    logits = forward(model, fixed | row('decoder', ids[:, :at] if of_the_batch(case) else ids))
    ids[:, at] = np.argmax(np.asarray(logits)[:, at - 1], axis=-1)
  return ids[:, start.shape[1]:]


@jax.jit
def cached(model, inputs):
  """Returns i32[B,GREEDY] ids by argmax with caches; `inputs` are prompts, or what an encoder reads."""
  def step(state, _):
    logits, cache = state
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)              # [B]
    return model.step(ids, jnp.ones(ids.shape, bool), cache), ids
  return jax.lax.scan(step, model.begin(inputs, GREEDY), length=GREEDY)[1].T


def of_the_batch(case):
  """Returns whether choices were dropped because of a capacity that grows with the tokens of a batch."""
  return any((np.sum(weights > 0, axis=-1) < 2).any()
             for name, weights in case.items() if '_combine_' in name)


def cached_greedy(model, case):
  """Returns i32[B,GREEDY], as `greedy` but with caches and no token dropped."""
  if 'greedy_prompt' in case:
    return np.asarray(cached(model, row('decoder', case['greedy_prompt'])))
  return np.asarray(cached(model, {k: v for k, v in batch(case).items() if k.startswith('encoder')}))


def filled(hf, tensors):
  """Returns the model of a config.json with `tensors` (dict name -> array) in it, unrolled."""
  _, family = fields.family(hf)
  sections = family.configure(hf, hf['tie_word_embeddings'])
  make = lookup.recipe('model', sections['model'] | dict(scan_layers=False))
  model = nnx.eval_shape(lambda: make(blocks=sections['blocks'], rngs=nnx.Rngs(0)))
  kinds = dict(params=nnx.Param, router_state=router_state.RouterState)
  state = {part: nnx.to_pure_dict(nnx.state(model, kind)) for part, kind in kinds.items()}
  places = rules.places(state, family.table(sections))
  rules.check(places, {name: x.shape for name, x in tensors.items()})
  for place in places:
    *path, last = place.leaf
    holder = state
    for key in path:
      holder = holder[key]
    if not isinstance(holder[last], np.ndarray):
      holder[last] = np.zeros(holder[last].shape, holder[last].dtype)
    if place.tensor is not None:
      part = tensors[place.tensor][place.cut]
      holder[last][place.index or ...] = part.T if place.op == rules.LINEAR else part
  for arrays in state.values():
    nnx.update(model, nnx.State(jax.tree.map(jnp.asarray, arrays)))
  return model
