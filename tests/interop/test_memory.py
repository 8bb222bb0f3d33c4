"""A conversion holds less than two of the largest tensors and a gibibyte, measured on 2 GB.

One of 4 GB of bfloat16 holds less than 1.5 GiB, and takes no longer than twice a copy of its files.
"""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from stmoe.derive import convert
from stmoe.interop import tensors as files

GIB = 2**30
# 14 layers of 8 experts: 112 slices of 4 MiB make arrays of 448 MiB. The largest tensors have 256 MiB.
CONFIG = dict(architectures=['MixtralForCausalLM'], model_type='mixtral', vocab_size=65536, hidden_size=1024,
              num_attention_heads=16, num_key_value_heads=4, num_hidden_layers=14, num_local_experts=8,
              num_experts_per_tok=2, intermediate_size=1024, rms_norm_eps=1e-5, hidden_act='silu',
              rope_theta=1e4, tie_word_embeddings=False, max_position_embeddings=2048)


def layout(c=CONFIG, dtype='F32'):
  """Names, dtype and shapes of the synthetic checkpoint of config.json `c`."""
  d = c['hidden_size']
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
  return {name: (dtype, shape) for name, shape in shapes.items()}


def peak(*argv):
  """Peak resident bytes of a child `stmoe ARGV`, which must succeed.

  On Linux a child's ru_maxrss begins as the memory of its parent; VmHWM is the child's own.
  """
  own = "re.search(r'VmHWM:\\s*(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1]"
  usual = 'resource.getrusage(resource.RUSAGE_SELF).ru_maxrss'
  code = ('import pathlib, re, resource, sys\nfrom stmoe.cli import main\n'
          f'assert not main.main()\nprint({own if sys.platform == "linux" else usual})')
  done = subprocess.run([sys.executable, '-c', code, *map(str, argv)], capture_output=True, text=True,
                        check=False, env=os.environ | dict(XLA_FLAGS=''))      # one device, as users have it
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


def settled(folder, forget=False):
  """Waits until the files in `folder` are on disk; `forget` them, so that they are read from there."""
  for path in (path for path in folder.rglob('*') if path.is_file()):
    with path.open('rb') as f:
      os.fsync(f.fileno())
      if forget:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'posix_fadvise'), reason='files stay in memory here')
def test_bfloat16_takes_two_bytes_and_no_longer_than_two_copies(tmp_path):
  if shutil.disk_usage(tmp_path).free < 16e9:
    pytest.skip('16 GB of disk are needed')
  config, source, run = CONFIG | dict(num_hidden_layers=72), tmp_path / 'in', tmp_path / 'run'
  source.mkdir()
  (source / 'config.json').write_text(json.dumps(config))
  made = files.create(source, layout(config, 'BF16'), most=GIB)
  rng = np.random.default_rng(0)
  for tensor in made.values():
    for first, last in tensor.blocks(1 << 26):                       # of any bits but those of infinities
      bits = rng.integers(0, 2**15, (last - first, *tensor.shape[1:]), np.uint16)
      tensor.write(first, np.where(bits > 2**14, bits - 2**14, bits).view(files.DTYPES['BF16']))
  total = sum(t.size for t in made.values())
  assert 4e9 < total < 4.6e9 and len({t.file for t in made.values()}) > 3
  settled(source, forget=True)
  start = time.time()
  for path in source.iterdir():
    shutil.copyfile(path, tmp_path / path.name)
  settled(tmp_path)
  copying = time.time() - start
  for path in source.iterdir():
    (tmp_path / path.name).unlink()
  settled(source, forget=True)
  start = time.time()
  most = peak('convert', source, run)
  settled(run)
  converting = time.time() - start
  print(f'{total / 1e9:.2f} GB: copied at {total / 1e6 / copying:.0f} MB/s, converted at '
        f'{total / 1e6 / converting:.0f} MB/s, the start of the command and the disk included; peak resident '
        f'memory {most / 2**20:.0f} MiB')
  assert most < 1.5 * GIB
  assert sum(path.stat().st_size for path in run.rglob('*') if path.is_file()) < 1.02 * total
  assert converting < 2 * copying
  shutil.rmtree(run)


def held(path):
  """The share of a file's pages that are in memory."""
  with path.open('rb') as f:
    mapped = np.frombuffer(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
  there = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
  assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(len(mapped)),
                                       ctypes.c_void_p(there.ctypes.data))
  return (there & 1).mean()


def written(folder, config):
  """The tensors of a synthetic checkpoint, all ones; they are on the disk alone, else the test is skipped."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  made = files.create(folder, layout(config, 'BF16'), most=GIB)
  for tensor in made.values():
    tensor.write(0, np.ones(tensor.shape, np.float32))
  settled(folder, forget=True)
  if held(folder / 'model.safetensors') > 0.1:
    pytest.skip('files are kept in memory here')
  return made


@pytest.mark.skipif(sys.platform != 'linux', reason='files stay in memory here')
def test_what_was_read_and_written_is_on_the_disk_alone(tmp_path):
  written(tmp_path / 'in', CONFIG | dict(num_hidden_layers=1, vocab_size=2048))
  convert.read(tmp_path / 'in', tmp_path / 'run', say=lambda line: None)
  chunks = [path for path in tmp_path.glob('run/**/*') if path.is_file() and path.stat().st_size > 2**16]
  assert len(chunks) > 5 and max(map(held, chunks)) < 0.1
  assert held(tmp_path / 'in' / 'model.safetensors') < 0.5           # its begin alone: the system reads ahead


@pytest.mark.skipif(sys.platform != 'linux', reason='files stay in memory here')
def test_a_tensor_is_read_where_it_is_used(tmp_path):
  made = written(tmp_path / 'in', CONFIG | dict(num_hidden_layers=1, vocab_size=2048))
  file, tensors = tmp_path / 'in' / 'model.safetensors', [tensor.read() for tensor in made.values()]
  assert held(file) < 0.1                # while Python maps a file, no other thread runs
  assert all((x == 1).all() for x in tensors) and held(file) > 0.9


def test_resident_memory_is_that_of_the_command():
  held = np.ones(1 << 26)                                            # 512 MiB of this process
  assert 10 * 2**20 < peak('--version') < held.nbytes
