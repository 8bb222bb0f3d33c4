"""`stmoe offload` and `stmoe place`: what simulators say of a recording, and mistakes."""

import json

import numpy as np
import pytest

from stmoe.analysis import serving
from stmoe.analysis.serving import hybrimoe
from stmoe.analysis.serving import offloading
from stmoe.data import recording

LAYERS, E, K = 3, 8, 2


@pytest.fixture(scope='module')
def trace():
  rng = np.random.default_rng(0)
  chosen = np.stack([rng.permutation(E)[:K] for _ in range(60 * LAYERS)]).reshape(60, LAYERS, K)
  return serving.Trace(chosen.astype(np.int32), E)


def write(path, chosen, routers):
  """Writes a recording of two rows of thirty tokens and padding; returns its path."""
  routes = np.full((2, 32, LAYERS, K), -1, np.int32)
  routes[:, :30] = chosen.reshape(2, 30, LAYERS, K)
  segments = np.zeros((2, 32), np.int32)
  segments[:, :30] = 1
  about = recording.About(run='r', step=1, objective={}, vocabulary='', choices=K, text={}, routers=routers)
  recording.write(path, about, dict(decoder_segment_ids=segments), dict(decoder=routes))
  return path


@pytest.fixture
def recorded(trace, tmp_path):
  routers = [f'decoder_{layer:02d}:{E}:{K}' for layer in range(LAYERS)]
  return write(tmp_path / 'routes.npz', trace.chosen, routers)


def test_the_commands_read_recordings(trace, recorded, command, tmp_path):
  code, out, err = command('offload', recorded, '--slots', 3, '--json')
  assert code == 0, err
  found = json.loads(out)['decoder']
  assert found == json.loads(json.dumps(offloading.compared(trace, 3, hybrimoe.Times())))
  assert found['tokens'] == 60 and found['policies']['belady']['hits'] >= found['policies']['lru']['hits']
  code, out, err = command('offload', recorded)
  assert code == 0 and 'decoder: 3 layers of 8 experts, 4 of them' in out, err
  assert 'times in one unit: --gpu 0.5,' in out
  code, out, err = command('offload', recorded, '--prefetch', 2)
  assert code == 0 and 'hybrimoe, most_used' in out and 'hybrimoe, oracle' in out and 'ring' in out, err
  code, out, err = command('place', recorded, '--devices', 4, '--nodes', 2, '--output', tmp_path / 'p.json')
  assert code == 0 and 'moetuner' in out and 'time of a layer' in out, err
  quick = command('place', recorded, '--devices', 4, '--send', 0, '--chunks', 2, '--token', 0)[1]
  assert quick.splitlines()[-1].split()[-1] == '0.0'
  assert np.shape(json.loads((tmp_path / 'p.json').read_text())['decoder']) == (LAYERS, E)


def test_virtual_experts_take_no_place_and_layers_may_differ(trace, command, tmp_path):
  """Of layers of 8, 4 and 8 experts and of 2 virtual ones: those of ids 8 and 9, in the second 4 to 9."""
  chosen = np.where(trace.chosen == 7, 9, trace.chosen)
  routers = ['decoder_00:8+2:2', 'decoder_01:4+6:2', 'decoder_02:8+2:2']
  path = write(tmp_path / 'routes.npz', chosen, routers)
  code, out, err = command('offload', path, '--slots', 4, '--json')
  assert code == 0, err
  found = json.loads(out)['decoder']
  real = [(chosen[:, layer] < number).sum() for layer, number in enumerate((8, 4, 8))]
  assert found['requests'] == sum(real) and found['experts'] == 8
  code, out, err = command('offload', path)
  assert code == 0 and 'decoder: 3 layers of 4 to 8 experts, 4 of them on the device' in out, err
  code, out, err = command('place', path, '--devices', 2, '--output', tmp_path / 'p.json')
  assert code == 0 and 'decoder: 3 layers of 4 to 8 experts on 2 devices, 60 tokens' in out, err
  placement = json.loads((tmp_path / 'p.json').read_text())['decoder']
  assert [sorted(layer) for layer in placement] == [[0] * 4 + [1] * 4, [0, 0, 1, 1], [0] * 4 + [1] * 4]


@pytest.mark.parametrize('words, said', [
    (['offload', '--slots', 9], 'nearest: 8'), (['offload', '--slots', 0], 'at least 1'),
    (['offload', '--move', '-1'], 'at least 0'), (['place', '--devices', 3], 'nearest: 2 or 4'),
    (['place', '--devices', 2, '--chunks', 0], 'at least 1'),
    (['place', '--devices', 7], 'nearest: 8 or 4'), (['place', '--devices', 9], 'nearest: 8'),
    (['place', '--devices', 4, '--nodes', 3], 'nearest: 3 or 6'),
    (['place', '--devices', 5, '--nodes', 3], 'nearest: 6 or 3')])
def test_mistakes_are_one_line(recorded, mistake, words, said):
  command, *options = words
  assert said in mistake(command, recorded, *options)


def test_another_file_is_no_recording(mistake, tmp_path):
  np.savez(tmp_path / 'a.npz', x=np.zeros(2))
  assert 'is no recording of routing' in mistake('offload', tmp_path / 'a.npz')
  assert 'is a folder, not a recording of routing; nearest: that of `stmoe record' in mistake(
      'offload', tmp_path)
  assert 'b.npz' in mistake('place', tmp_path / 'b.npz', '--devices', 2)
