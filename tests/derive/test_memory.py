"""A run larger than half of the memory is compressed tensor by tensor, measured on 2 GB.

One of the surgeries looks at data: calibration reads the model layer by layer.
"""

import json
import shutil

import numpy as np
import pytest

from stmoe.checkpoints import stored
from stmoe.derive import convert
from stmoe.interop import tensors as files
from tests.interop import test_memory

GIB = 2**30


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """(run directory of 2 GB, bytes of its largest tensor)."""
  path = tmp_path_factory.mktemp('start')
  if shutil.disk_usage(path).free < 10e9:
    pytest.skip('10 GB of disk are needed')
  source = path / 'in'
  source.mkdir()
  (source / 'config.json').write_text(json.dumps(test_memory.CONFIG))
  made, rng = files.create(source, test_memory.layout(), most=GIB), np.random.default_rng(0)
  for tensor in made.values():
    for first, last in tensor.blocks(1 << 24):
      tensor.write(first, rng.standard_normal((last - first, *tensor.shape[1:]), np.float32))
  assert sum(t.size for t in made.values()) > 2e9
  convert.read(source, path / 'run')
  shutil.rmtree(source)
  yield path / 'run', max(t.size for t in made.values())
  shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize('surgery', ['prune:by=magnitude', 'average:weights=uniform', 'slim_moe:keep=1.0',
                                     'prune:by=reap'])
def test_a_compression_holds_a_few_tensors(start, surgery, tmp_path):
  run, largest = start
  (tmp_path / 'text').write_text('To calibrate is to look at a text.\n' * 1000)
  looks = ['--config.data.vocab=bytes', f'--config.data.files={tmp_path}/text,{tmp_path}/text',
           '--config.train.batch_size=2', '--batches', 2] if surgery == 'prune:by=reap' else []
  peak = test_memory.peak('compress', run, surgery, '--workdir', tmp_path / 'half', *looks)
  limit = 2 * largest + GIB
  print(f'{surgery}: peak resident memory {peak / 2**20:.0f} MiB, limit {limit / 2**20:.0f} MiB')
  assert peak < limit
  kept = stored.Reader(tmp_path / 'half' / 'checkpoints', 0)
  shape, *_ = kept.inventory['params/decoder/segments/0/blocks/0/layer/experts/wi']
  assert shape == [14, 8 if 'keep' in surgery else 4, 1024, 1024]
  assert [path.name for path in (tmp_path / 'half').iterdir() if path.name.startswith('.')] == []
  shutil.rmtree(tmp_path / 'half')
