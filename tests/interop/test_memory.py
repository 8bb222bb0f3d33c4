"""A conversion holds less than two of the largest tensors and a gibibyte, measured on 2 GB."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest

from stmoe.interop import tensors as files

GIB = 2**30
# 14 layers of 8 experts: 112 slices of 4 MiB make arrays of 448 MiB. The largest tensors have 256 MiB.
CONFIG = dict(architectures=['MixtralForCausalLM'], model_type='mixtral', vocab_size=65536, hidden_size=1024,
              num_attention_heads=16, num_key_value_heads=4, num_hidden_layers=14, num_local_experts=8,
              num_experts_per_tok=2, intermediate_size=1024, rms_norm_eps=1e-5, hidden_act='silu',
              rope_theta=1e4, tie_word_embeddings=False, max_position_embeddings=2048)


def layout():
  """Names and shapes of the synthetic checkpoint, float32."""
  c, d = CONFIG, CONFIG['hidden_size']
  shapes = {'model.embed_tokens.weight': (c['vocab_size'], d), 'lm_head.weight': (c['vocab_size'], d),
            'model.norm.weight': (d,)}
  for i in range(c['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    shapes |= {f'{layer}{norm}.weight': (d,) for norm in ('input_layernorm', 'post_attention_layernorm')}
    shapes |= {f'{layer}self_attn.{m}_proj.weight': (d // 4 if m in 'kv' else d, d) for m in 'qkvo'}
    moe = f'{layer}block_sparse_moe.'
    shapes[f'{moe}gate.weight'] = (c['num_local_experts'], d)
    shapes |= {f'{moe}experts.{e}.{w}.weight': (c['intermediate_size'], d)
               for e in range(c['num_local_experts']) for w in ('w1', 'w2', 'w3')}
  return {name: ('F32', shape) for name, shape in shapes.items()}


def peak(*argv):
  """Peak resident bytes of a child `stmoe ARGV`, which must succeed."""
  code = ('import resource, sys\nfrom stmoe.cli import main\n'
          'assert not main.main(sys.argv[1:])\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)')
  done = subprocess.run([sys.executable, '-c', code, *map(str, argv)], capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return int(done.stdout.split()[-1]) * (1 if sys.platform == 'darwin' else 1024)


@pytest.mark.slow
def test_memory_of_both_ways(tmp_path):
  source, run, out = tmp_path / 'in', tmp_path / 'run', tmp_path / 'out'
  source.mkdir()
  (source / 'config.json').write_text(json.dumps(CONFIG))
  made = files.create(source, layout(), most=GIB)
  rng = np.random.default_rng(0)
  for tensor in made.values():
    for first, last in tensor.blocks(1 << 24):
      tensor.write(first, rng.standard_normal((last - first, *tensor.shape[1:]), np.float32))
  total, largest = sum(t.size for t in made.values()), max(t.size for t in made.values())
  assert total > 2e9 and len({t.file for t in made.values()}) > 1
  peaks = [peak('convert', source, run), peak('convert', run, out)]
  print(f'{total / 1e9:.2f} GB, largest tensor {largest / 2**20:.0f} MiB, peak resident memory '
        f'{" and ".join(f"{p / 2**20:.0f} MiB" for p in peaks)} of import and export, limit '
        f'{(2 * largest + GIB) / 2**20:.0f} MiB')
  assert max(peaks) < 2 * largest + GIB
  again = files.tensors(out)
  assert all(files.equal(again[name], tensor) for name, tensor in made.items())


def test_resident_memory_is_measured():
  assert peak('--version') > 10 * 2**20 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
