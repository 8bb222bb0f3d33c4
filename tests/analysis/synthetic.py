"""Run directories written by hand: what figures and reports are tested on without a trainer."""

import json

import numpy as np


def write_run(folder, method='switch', *, layers=('decoder_01', 'decoder_03'), experts=8, steps=200,
              seed=0, final=2.2, done=True, extra=None):
  """Writes a run directory of a made-up byte language model into `folder`; returns the path."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  (folder / 'router_stats').mkdir()
  config = dict(seed=seed, model=dict(name='lm', d_model=64, layers=[['dm', 2]]),
                blocks=dict(m=dict(layer='moe', router=dict(name=method))),
                data=dict(task='stdlib', vocab='bytes', length=128),
                train=dict(steps=steps, batch_size=8), **(extra or {}))
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'env.json').write_text(json.dumps(dict(jax='0.10.2', python='3.11.7', devices=dict(kind='cpu'))))
  lines = []
  for step in range(10, steps + 1, 10):
    bits = final + 3.0 * np.exp(-step / (0.2 * steps))
    line = {'step': step, 'tokens': step * 1024, 'flops': step * 1024 * 6e5,
            'time': dict(seconds=step * 0.1, host_memory_gib=1.5),
            'loss/ce': (bits + rng.normal(0, 0.05)) * np.log(2), 'lr': 1e-3, 'grad_norm': 1.0}
    for layer in layers:
      line[f'moe/{layer}/drop_frac'] = 0.1 * np.exp(-step / steps) + rng.uniform(0, 0.01)
      line[f'moe/{layer}/router_entropy'] = 1.9 - 0.5 * step / steps
      line[f'moe/{layer}/max_load_ratio'] = 1.0 + np.exp(-3 * step / steps) + rng.uniform(0, 0.1)
    for metric in ('drop_frac', 'router_entropy', 'max_load_ratio') if layers else ():
      line[f'moe/{metric}'] = float(np.mean([line[f'moe/{layer}/{metric}'] for layer in layers]))
    if step % 40 == 0:
      line.update({'eval/loss': bits * np.log(2), 'eval/bits_per_byte': bits,
                   'eval/perplexity': float(np.exp(bits * np.log(2))), 'eval/accuracy': 0.5})
    lines.append(line)
    if layers and step % 20 == 0:
      load = rng.dirichlet(np.full(experts, 30 * step / steps), size=len(layers)) * 1024
      np.savez(folder / 'router_stats' / f'{step}.npz', moe_load=load.astype(np.float32),
               layers=np.array(layers))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  if done:
    (folder / 'DONE').write_text(json.dumps(lines[-1]))
  return folder
