"""What the format of safetensors forbids, and folders that lead elsewhere: one line with file and tensor."""

import json
import pathlib
import shutil

import pytest

from stmoe import errors
from stmoe.interop import tensors as files

CASE = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints' / 't5_v11_tied_unscaled'
INDEX = 'model.safetensors.index.json'
ONE, TWO = 'shared.weight', 'decoder.final_layer_norm.weight'


@pytest.fixture
def folder(tmp_path):
  """A copy of a checkpoint."""
  return shutil.copytree(CASE, tmp_path / 'in')


def parts(folder):
  content = (folder / 'model.safetensors').read_bytes()
  end = 8 + int.from_bytes(content[:8], 'little')
  return content[8:end].decode(), content[end:]


def rewrite(folder, header, data=None):
  header = header if isinstance(header, str) else json.dumps(header)
  data = parts(folder)[1] if data is None else data
  header = header.encode()
  (folder / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + data)


def entry(name, **fields):
  """A change of one entry of the header."""
  def change(folder):
    header = json.loads(parts(folder)[0])
    header[name] = header[name] | fields
    rewrite(folder, header)
  return change


def moved(by):
  """A change that moves one tensor by some bytes, and leaves its length."""
  def change(folder):
    header = json.loads(parts(folder)[0])
    header[ONE]['data_offsets'] = [n + by for n in header[ONE]['data_offsets']]
    rewrite(folder, header)
  return change


def twice(folder):
  text, _ = parts(folder)
  rewrite(folder, text.rstrip()[:-1] + f', {json.dumps(ONE)}: {json.dumps(json.loads(text)[ONE])}}}')


def text(old, new):
  """A change of the text of the header."""
  return lambda folder: rewrite(folder, parts(folder)[0].replace(old, new, 1))


def behind(folder):
  rewrite(folder, *(parts(folder)[0], parts(folder)[1] + b'12345'))


def declared(length):
  def change(folder):
    file = folder / 'model.safetensors'
    file.write_bytes(length.to_bytes(8, 'little') + file.read_bytes()[8:])
  return change


def hole(folder):
  """The last tensor four bytes later, and four bytes more."""
  header = json.loads(parts(folder)[0])
  last = max(set(header) - {'__metadata__'}, key=lambda name: header[name]['data_offsets'])
  header[last]['data_offsets'] = [n + 4 for n in header[last]['data_offsets']]
  rewrite(folder, header, parts(folder)[1] + b'1234')


def metadata(value):
  return lambda folder: rewrite(folder, json.loads(parts(folder)[0]) | dict(__metadata__=value))


FORBIDDEN = {
    'overlap': (moved(-4), (ONE, 'overlaps')),
    'hole': (hole, ('has a hole before it',)),
    'a name twice': (twice, (ONE, 'twice')),
    'bytes behind': (behind, ('5 bytes behind',)),
    'longer header than file': (declared(1 << 40), ('cut short or no safetensors',)),
    'absurd header': (declared((1 << 64) - 1), ('at most 100,000,000',)),
    'a dtype of other bytes': (entry(ONE, dtype='BF16'), (ONE, 'not as many')),
    'no dtype': (entry(ONE, dtype='F31'), (ONE, "'F31'")),
    'a dtype that is no text': (entry(ONE, dtype=['F32']), (ONE, 'of dtype')),
    'negative shape': (entry(ONE, shape=[-160, -32]), (ONE, 'no sizes')),
    'huge shape': (entry(ONE, shape=[1 << 70, 0]), (ONE, 'no sizes')),
    'fractional shape': (entry(ONE, shape=[160.0, 32]), (ONE, 'no sizes')),
    'shape of flags': (entry(ONE, shape=[True, 5120]), (ONE, 'no sizes')),
    'three places': (entry(ONE, data_offsets=[0, 1, 2]), (ONE, 'not as many')),
    'places backwards': (entry(ONE, data_offsets=[8, 4]), (ONE, 'not as many')),
    'negative places': (entry(ONE, data_offsets=[-4, 20476]), (ONE, 'no sizes')),
    'an entry that is none': (text('{"dtype":', '3, "x": {"dtype":'), ('no dtype, shape and data_offsets',)),
    'NaN': (text('[160,32]', '[NaN,32]'), ('NaN',)),
    'nested': (lambda folder: rewrite(folder, '{"a":' * 99_999), ('nested too deeply',)),
    'metadata of numbers': (metadata(dict(format=1)), ('__metadata__',)),
    'metadata as text': (metadata('pt'), ('__metadata__',)),
    'not UTF-8': (lambda folder: declared(3)(folder), ('broken header',)),
}


@pytest.mark.parametrize('name', FORBIDDEN)
def test_what_the_format_forbids(name, folder):
  change, says = FORBIDDEN[name]
  change(folder)
  with pytest.raises(errors.Damaged) as caught:
    files.tensors(folder)
  line = str(caught.value)
  assert 'model.safetensors' in line and '\n' not in line and all(text in line for text in says), line


def test_an_empty_tensor_between_others_is_none_of_these(folder):
  header = json.loads(parts(folder)[0])
  header['empty'] = dict(dtype='F32', shape=[0, 7], data_offsets=[header[ONE]['data_offsets'][1]] * 2)
  rewrite(folder, header)
  assert files.tensors(folder)['empty'].read().shape == (0, 7)


def index(folder, **where):
  (folder / INDEX).write_text(json.dumps(dict(weight_map=where)))


@pytest.mark.parametrize('name', ['../out.safetensors', '/etc/out.safetensors', 'sub/model.safetensors', '.',
                                  '..', '', 'a\0b', 7, None])
def test_an_index_names_files_of_its_folder(folder, name):
  shutil.copyfile(folder / 'model.safetensors', folder.parent / 'out.safetensors')
  index(folder, **{ONE: name})
  with pytest.raises(errors.Damaged, match='no file of this folder|no name of a file'):
    files.tensors(folder)


@pytest.mark.parametrize('value', [{}, [], 'model.safetensors'])
def test_an_index_has_a_map(folder, value):
  (folder / INDEX).write_text(json.dumps(dict(weight_map=value)))
  with pytest.raises(errors.Damaged, match='no weight_map'):
    files.tensors(folder)


def test_an_index_names_each_tensor_s_own_file(folder):
  second = shutil.copytree(folder, folder.parent / 'second')
  rewrite(second, {'more': dict(dtype='U8', shape=[2], data_offsets=[0, 2])}, b'ab')
  shutil.copyfile(second / 'model.safetensors', folder / 'two.safetensors')
  index(folder, **{ONE: 'model.safetensors', 'more': 'two.safetensors'})
  assert 'more' in files.tensors(folder)
  index(folder, **{ONE: 'two.safetensors', 'more': 'model.safetensors'})
  with pytest.raises(errors.Damaged, match=f'{ONE}.*two.safetensors'):
    files.tensors(folder)


def test_links_stay_in_the_folder_or_in_the_cache_of_huggingface_hub(folder):
  home = folder.parent / 'models--a--b'
  for name in ('blobs', 'snapshots/1'):
    (home / name).mkdir(parents=True)
  shutil.copyfile(folder / 'model.safetensors', home / 'blobs' / 'digest')
  link = home / 'snapshots' / '1' / 'model.safetensors'
  link.symlink_to('../../blobs/digest')
  assert ONE in files.tensors(link.parent)
  (folder / 'model.safetensors').unlink()
  (folder / 'model.safetensors').symlink_to(home / 'blobs' / 'digest')
  with pytest.raises(errors.Damaged, match='link to a file outside'):
    files.tensors(folder)
