"""Our side: the folder that transformers wrote is opened, and trains or writes text when told.

A job is dict(kind, folder, ids, form, ...), as `theirs` has it; `form` is 'scanned' or 'unrolled'.
"""

import json
import sys

from flax import nnx
import jax
import numpy as np

from stmoe.decode import generate
from stmoe.derive import direct
from stmoe.experiments.kernels.whole import serving
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import step as steps


def batch(ids: np.ndarray, targets: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """Returns the arrays of ids i32[B,T] without padding; with the ids that follow, a batch of training.

  An id -100 among `targets` has no weight, as in transformers.
  """
  named = dict(input_tokens=ids, segment_ids=np.ones_like(ids),
               positions=np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape))
  if targets is not None:
    named |= dict(target_tokens=np.maximum(targets, 0), loss_weights=(targets >= 0).astype(np.float32))
  return {f'decoder_{name}': np.ascontiguousarray(a) for name, a in named.items()}


def train(opened, mesh, ids, rate):
  """Returns the function that takes a step of AdamW on ids [B,T], and returns its cross entropy."""
  cfg = opened.cfg.copy_and_resolve_references().unlock()
  cfg.optimizer = dict(name='adamw', b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  cfg.schedule = dict(name='constant', value=rate)
  cfg.train.update(batch_size=len(ids), clip=0.0)
  check.counts(cfg)
  plan = states.blueprint(cfg, mesh)
  state = [states.init(cfg, plan) | dict(params=nnx.to_pure_dict(nnx.state(opened.model, nnx.Param)))]
  targets = np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], -100)], axis=1)
  placed, do = check.place(batch(ids, targets), mesh), steps.make(cfg, plan)

  def step():
    state[0], report = do(state[0], placed)
    jax.block_until_ready(state[0])
    return float(report['loss/ce'])
  return step


def decode(opened, mesh, ids, length):
  """Returns the function that adds `length` ids to the prompts [B,T], greedily; returns them."""
  program = generate.make(opened.plan, dict(name='greedy', eos_id=-1), length)
  params = nnx.to_pure_dict(nnx.state(opened.model, nnx.Param))
  placed, key = check.place(batch(ids), mesh), jax.random.key(0)
  return lambda: np.asarray(program(params, {}, placed, key)).tolist()


def main(job):
  """Does the job; see the top of this file."""
  loop.keep_compilations()
  scanned = f'--config.model.scan_layers={job["form"] == "scanned"}'
  section, ids = dict(data=1, expert=1, model=1), np.asarray(job['ids'], np.int32)
  with states.on_mesh(section, jax.devices()[:1]) as mesh:
    opened = direct.opened(job['folder'], section, [scanned], devices=jax.devices()[:1])
    run = (train(opened, mesh, ids, job['rate']) if job['kind'] == 'train' else
           decode(opened, mesh, ids, job['length']))
    serving.serve(run, parameters=sum(x.size for x in jax.tree.leaves(opened.plan.shapes['params'])),
                  versions=dict(jax=jax.__version__))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
