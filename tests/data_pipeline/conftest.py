"""A small configuration on files of this test run, and one cache folder for all tests of the folder."""

import ml_collections
import pytest

WORDS = 'router expert token gate load drop noise span sentinel window'.split()


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def files(tmp_path_factory):
  """40 files of 5 to 75 lines, so that two of them are held out whole."""
  folder = tmp_path_factory.mktemp('text')
  paths = []
  for i in range(40):
    lines = [f'{WORDS[(i * j + j) % 10]} {i} {WORDS[(i + j) % 10]} é{j}' for j in range(5 + (i * 37) % 71)]
    paths.append(folder / f'{i:02}.txt')
    paths[-1].write_text('\n'.join(lines) + '\n')
  return [str(p) for p in paths]


@pytest.fixture
def config(files, cache_dir):
  """Returns make(**fields of data) -> a configuration with batches of 8."""
  def make(**fields):
    data = dict(task='text', files=tuple(files), vocab='bytes', extra_ids=0, objective='lm', length=64,
                join=True, pack=True, mixture=(), shuffle=True, eval_split='validation',
                cache_dir=str(cache_dir))
    if fields.get('objective') == 'span_corruption':
      data.update(extra_ids=100, inputs_length=64, targets_length=32)
    data.update(fields)
    return ml_collections.ConfigDict(
        dict(seed=0, train=dict(batch_size=8), eval=dict(batch_size=8), data=data))
  return make
