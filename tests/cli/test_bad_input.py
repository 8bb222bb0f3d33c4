"""Everything a user can get wrong is one readable line and exit code 2, before anything is compiled."""

import errno
import pathlib
import shutil
import subprocess

import jax
import pytest

from stmoe.cli import main

# A model so small that compiling it is what takes time; eight virtual devices share its eight rows.
TINY = ('--config.model.d_model=16', '--config.model.num_heads=1', '--config.model.head_dim=16',
        '--config.blocks.d.d_ff=16', '--config.blocks.m.experts.d_ff=16', '--config.data.length=32',
        '--config.train.steps=2', '--config.train.batch_size=8', '--config.train.log_every=1',
        '--config.eval.batch_size=8', '--config.eval.batches=1', '--config.eval.every=100',
        '--config.checkpoint.every=1', '--config.checkpoint.keep=3', '--config.model.vocab_size=512')
SWITCH = 'lm/text:method=switch,smoke'

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
  """A token cache of this file's own."""
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path_factory.getbasetemp() / 'cache'))


def write_text(path, seed=0):
  """Writes 8 KB of text; another seed, other words."""
  words = [f'word{(i * i + seed) % 97}' for i in range(1200)]
  path.write_text('\n'.join(' '.join(words[i:i + 8]) for i in range(0, len(words), 8)) + '\n')
  return path


@pytest.fixture
def text(tmp_path):
  return write_text(tmp_path / 'text.txt')


def arguments(text, workdir, *more):
  return ['train', SWITCH, f'--config.data.files={text}', '--workdir', str(workdir), *TINY, *more]


@pytest.mark.parametrize('more, words', [
    (['--config.train.stps=3'], ['config.train.stps does not exist', 'nearest: config.train.steps']),
    (['--config.train.steps=lots'], ['config.train.steps=lots', 'a whole number']),
    (['--config.train.steps=0'], ['train.steps=0', 'at least 1']),
    (['--config.blocks.m.router.num_experts=6', '--config.mesh.expert=4', '--config.mesh.data=2'],
     ['6', '4', 'expert']),
    (['--config.mesh.expert=3', '--config.mesh.data=2'], ['mesh', '8']),
    (['--config.blocks.m.group_size=7'], ['group_size 7', 'nearest:']),
    (['--config.train.batch_size=9'], ['train.batch_size=9', 'nearest: 8, 16']),
    (['--config.data.files=nowhere.txt'], ["no file 'nowhere.txt'"]),
    (['--config.data.task=stdlob'], ["'stdlob'", 'nearest: stdlib']),
    (['--config.data.vocab=nowhere.model'], ['nowhere.model']),
    (['--config.model.vocab_size=100'], ['model.vocab_size=100', '259']),
    (['--config.blocks.m.router.name=swich'], ["no router is called 'swich'", 'nearest: switch']),
    (['--config.blocks.m.executor=gathr'], ["no executor is called 'gathr'", 'nearest: gather']),
    (['--config.blocks.m.executor=all_to_all:chunk=2'], ["no field 'chunk'", 'nearest: chunks']),
    (['--config.blocks.m.executor=all_to_all:chunks=0'], ['chunks=0', 'at least 1']),
    (['--config.mesh.rules=fsdq'], ["mesh.rules='fsdq'", 'nearest: fsdp']),
    (['--config.mesh.rules=embed=model'],
     ["'model' on decoder/", 'twice', "nearest: mesh.rules='embed=model,"]),
    (['--config.mesh.expert=2', '--config.mesh.rules=folded', '--config.mesh.model=4',
      '--config.blocks.m.router.num_experts=4'],
     ['mesh.expert x model=8: experts ', '4 is not divisible by 8', 'nearest: mesh.expert=2 mesh.model=2']),
    (['--config.optimizer.name=adam'], ["'adam'", 'nearest: adamw']),
])
def test_mistakes_in_a_configuration(mistake, text, tmp_path, more, words):
  compiled.clear()
  line = mistake(*arguments(text, tmp_path / 'run', *more))
  assert all(word in line for word in words), line
  assert not compiled, 'compiled before the mistake was found'
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_classes_without_a_file_need_room(mistake, tmp_path):
  line = mistake('train', 'customization/digits:smoke', '--workdir', tmp_path / 'run',
                 '--config.model.vocab_size=5')
  assert "model.vocab_size=5, but data.source='customized_digits' has 10 ids" in line


@pytest.mark.parametrize('chosen', [
    ('vmoe/digits:smoke',), ('lm/stdlib:method=switch,smoke', '--config.data.objective=prefix_lm')])
def test_the_best_checkpoint_is_by_a_number_that_these_data_have(mistake, tmp_path, chosen):
  compiled.clear()
  line = mistake('train', *chosen, '--workdir', str(tmp_path / 'run'),
                 '--config.checkpoint.best=eval/bits_per_byte')
  assert "checkpoint.best='eval/bits_per_byte': there is no such score" in line and 'eval/loss' in line
  assert not compiled and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('experiment, override, words', [
    ('lm/text:method=base,smoke', 'blocks.m.inner.router.num_experts=7',
     ['num_experts=7', '128', '126, 133']),
    ('lm/text:method=base,smoke', 'blocks.m.inner.router.allow_causal=False',
     ['lets later tokens decide in a causal stack', 'allow_causal=True']),
    ('lm/zoo:method=expert_choice,leaky', 'blocks.m.router.allow_causal=False',
     ['lets later tokens decide in a causal stack', 'allow_causal=True']),
    ('lm/zoo:method=expert_choice', 'seed=0', ["method='expert_choice' is not causal"]),
    ('lm/text:method=deepseek_moe,smoke', 'blocks.m.inner.router.k=99', ['k=99', '31']),
    ('lm/text:method=thor,smoke', 'blocks.m.router.num_experts=1', ['num_experts=1']),
])
def test_mistakes_with_a_method(mistake, text, tmp_path, experiment, override, words):
  compiled.clear()
  line = mistake('train', experiment, '--config.data.task=text', f'--config.data.files={text}', '--workdir',
                 str(tmp_path / 'run'), f'--config.{override}')
  assert all(word in line for word in words), line
  assert not compiled and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('content, words', [
    (b'caf\xe9 ' * 100, ['not UTF-8', 'byte 3']),
    (b'', ['no text']),
    (b'\x1f\x8bnot gzip', ['is gzip, and does not end in .gz']),
])
def test_mistakes_in_a_file(mistake, tmp_path, content, words):
  file = tmp_path / 'bad.txt'
  file.write_bytes(content)
  compiled.clear()
  line = mistake(*arguments(file, tmp_path / 'run'))
  assert 'bad.txt' in line and all(word in line for word in words), line
  assert not compiled


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(text, run directory) of two trained steps, with a vocabulary of pieces and a checkpoint of each step."""
  folder = tmp_path_factory.mktemp('trained')
  text = write_text(folder / 'text.txt')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('STMOE_CACHE_DIR', str(tmp_path_factory.getbasetemp() / 'cache'))
    assert main.main(arguments(text, folder / 'run', '--config.data.vocab=train:280')) == 0
  assert compiled, 'this file sees what is compiled'
  return text, folder / 'run'


@pytest.fixture
def copied(trained, tmp_path):
  """(text, a copy of the trained run directory): tests may break it."""
  text, run = trained
  shutil.copytree(run, tmp_path / 'run')
  return text, tmp_path / 'run'


def again(text, run, *more):
  return arguments(text, run, '--config.data.vocab=train:280', '--config.train.steps=3', *more)


@pytest.mark.slow
def test_work_directory_of_another_experiment(mistake, trained):
  text, run = trained
  compiled.clear()
  line = mistake(*again(text, run, '--config.seed=1'))
  assert str(run) in line and 'seed is 0 there and 1 here' in line and '--workdir' in line
  assert not compiled


@pytest.mark.slow
def test_vocabulary_of_another_text(mistake, copied):
  """The text, and with it the vocabulary trained on it, has changed, and the run recorded neither."""
  text, run = copied
  (run / 'data.json').unlink()
  was = text.read_text()
  try:
    write_text(text, seed=5)
    line = mistake(*again(text, run))
  finally:
    text.write_text(was)
  assert 'another vocabulary' in line and '--workdir' in line


def test_truncated_checkpoint_falls_back_and_says_so(command, copied):
  text, run = copied
  (run / 'DONE').unlink()
  for file in (run / 'checkpoints' / '2' / 'state').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
  code, out, err = command(*again(text, run))
  said = out + err + (run / 'log.txt').read_text()
  assert code == 0
  assert 'checkpoint 2 cannot be read' in said and 'falling back to step 1' in said
  assert 'continuing from the checkpoint of step 1' in said


def test_finished_run_says_so_at_once(command, trained):
  text, run = trained
  compiled.clear()
  code, out, _ = command(*arguments(text, run, '--config.data.vocab=train:280'))
  assert code == 0 and 'is finished: 2 steps' in out and not compiled


def test_full_disk_while_the_run_begins(mistake, text, tmp_path, monkeypatch):
  def full(self, *args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device', str(self))
  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  assert 'no space left on device' in mistake(*arguments(text, tmp_path / 'run'))


def test_full_disk_keeps_what_was_saved(mistake, copied, monkeypatch):
  text, run = copied
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 0))
  line = mistake(*again(text, run))
  assert 'no space left on device' in line and 'saved and intact: step 1, step 2' in line


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 1 MB, where this user may mount one."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
  try:
    done = subprocess.run(mount, capture_output=True, check=False)
  except FileNotFoundError:
    pytest.skip('there is no mount command')
  if done.returncode:
    pytest.skip('this user may not mount a file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def test_really_full_disk(mistake, text, small_disk):
  (small_disk / 'filler').write_bytes(bytes(900_000))
  assert 'no space left on device' in mistake(*arguments(text, small_disk / 'run'))
