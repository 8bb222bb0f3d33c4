"""The command `stmoe`: finding sub-commands, exit codes, and what it must not import."""

import argparse
import errno
import importlib
import io
import subprocess
import sys

import pytest

import stmoe
from stmoe import errors
from stmoe.cli import main


def test_help_names_every_command_with_its_line(command):
  code, out, _ = command('--help')
  assert code == 0 and command()[1] == out
  for name, line in main.commands().items():
    assert line.endswith('.') and f'{name} ' in out and line in out


def test_every_command_explains_itself(command):
  for name in main.commands():
    try:
      code = command(name, '--help')[0]
    except SystemExit as stop:           # of argparse, where a command has nothing to add
      code = stop.code
    assert code == 0, name


def test_help_is_asked_for_by_a_word_too(command):
  assert command('help') == command('--help')
  assert command('help', 'nosuch')[0] == 2 and "called 'nosuch'" in command('help', 'nosuch')[2]


def test_version(command):
  assert command('--version') == (0, f'stmoe {stmoe.__version__}\n', '')


SNIPPET = '''
import contextlib, io, sys
from stmoe.cli import main
for argv in (['--help'], ['list'], ['show', 'lm/stdlib:smoke'], ['show', 'lm/stdlib', '--json'],
             ['diff', 'lm/stdlib', 'lm/stdlib:smoke'], ['nosuch'], ['show', 'nosuch']):
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main.main(argv)
  print(argv, *sorted({name.partition('.')[0] for name in sys.modules}))
'''


def test_light_commands_import_no_heavy_library():
  """Neither JAX nor TensorFlow nor what takes its seconds: the answer comes in well under a second."""
  done = subprocess.run([sys.executable, '-c', SNIPPET], capture_output=True, text=True, check=True)
  heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain', 'tensorflow', 'seqio', 'numpy', 'matplotlib',
           'rich', 'tensorboardX'}
  lines = done.stdout.splitlines()
  assert len(lines) == 7
  for line in lines:
    assert not heavy & set(line.split()), line


def test_importing_a_command_imports_no_heavy_library():
  """Heavy imports stand inside `run`, so that `stmoe train --help` is instant too."""
  code = ('import importlib, sys; from stmoe.cli import main\n'
          'for name in main.commands(): importlib.import_module(f"stmoe.cli.{name}")\n'
          'print(*sys.modules)')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert not {'jax', 'tensorflow', 'seqio', 'matplotlib', 'grain'} & set(done.stdout.split())


def test_a_command_ends_without_a_look_at_what_goes_with_it():
  code = ('import atexit, gc, sys; from stmoe.cli import main\n'
          'atexit.register(lambda: print(gc.get_freeze_count()))     # registered first, it runs last\n'
          'sys.argv[1:] = ["--version"]; main.main()')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert int(done.stdout.split()[-1]) > 1000


@pytest.mark.parametrize('argv, words', [
    (['trian'], ["no command is called 'trian'", 'nearest: train']),
    (['show'], ['required: name', 'stmoe show --help']),
    (['show', 'lm/stdlib', '--jsno'], ['knows no --jsno; nearest: --json; see stmoe show --help']),
    (['show', '--field'], ['stmoe show knows no --field; nearest: --fields']),
    (['bench', '--by-scop'], ['knows no --by-scop; nearest: --by-scope']),
    (['infer', '--lenght=3'], ['knows no --lenght; nearest: --length']),
    (['infer', 'runs/x', '--beams', '3'], ['knows no --beams; nearest: --config.decode.beams']),
    (['train', '--step', '3'], ['knows no --step; nearest: --config.train.steps']),
    (['train', 'lm/quickstart', '--lr=3'], ['knows no --lr; nearest: --config.schedule.peak']),
    (['train', 'lm/quickstart', '--xyzzy', '3'], ['--xyzzy; fields', 'are --config.FIELD=VALUE', '--help']),
    (['show', 'droop'], ["called 'droop'; nearest: drop"]),
    (['show', 'swich'], ["called 'swich'; nearest: switch"]),
    (['list', 'routrs'], ['nearest: routers']),
    (['list', '--config.seed=1'], ['stmoe list takes no --config.seed=1']),
    (['list', 'no such name'], ['no experiment has']),
    (['show', 'lm/stdlb'], ["no experiment is called 'lm/stdlb'", 'nearest: lm/stdlib']),
    (['show', 'lm/stdlib:smoek'], ["argument 'smoek' is unknown", 'nearest: smoke']),
    (['show', 'lm/stdlib', '--config.train.stps=3'], ['config.train.stps', 'nearest: config.train.steps']),
    (['show', 'lm/stdlib', '--config.train.steps=many'], ['config.train.steps=many', 'a whole number']),
    (['show', 'lm/stdlib', '--config.train.steps'], ['config.train.steps', 'needs a value']),
    (['show', 'lm/quickstart', '--config.optimizer.lr=1'], ['nearest: config.schedule.peak']),
    (['show', 'lm/quickstart:method=switch', '--config.router.name=hash'],
     ['config.router.name does not exist; nearest: config.blocks.m.router.name']),
    (['train', 'lm/quickstart', '--steps', '3'], ['--steps; nearest: --config.train.steps', '--help']),
    (['train', 'lm/quickstart', 'method=switch', 'smoke'], ['and a colon, NAME:method=switch,smoke']),
    (['show', 'lm/quickstart:method=switch', '--config.blocks.m.router.name=mine',
      '--config.blocks.m.router.k=2'], ["no router is called 'mine'", 'is named by --plugin FILE']),
    (['show', 'lm/quickstart:method=switch', '--config.blocks.m.router.k=2'],
     ['router.k does not exist', "(router 'switch' has: name, num_experts, "]),
    (['diff', 'lm/stdlib', 'nowhere/exp.py'], ['no such file: nowhere/exp.py']),
    (['eval', 'run', '--step', '-1'], ['--step -1: expected a whole number of at least 0; nearest: 0']),
    (['infer', 'run', '--length', '0'], ['--length 0: expected a whole number of at least 1; nearest: 1']),
    (['infer', 'run', '--batch-size', '1.5'], ['--batch-size 1.5: expected a whole number']),
    (['train', 'lm/stdlib', '--heartbeat', '0'], ['--heartbeat 0: expected', 'nearest: 1']),
    (['train', 'lm/stdlib', '--start-timeout', 'nan'], ['--start-timeout nan: expected']),
    (['finetune', 'run', 'finetune/task', '--step', 'last'], ['--step last: expected']),
    (['upcycle', 'run', 'lm/stdlib', '--noise', 'nan'], ['--noise nan: expected a number of at least 0']),
    (['upcycle', 'run', 'lm/stdlib', '--scale', '0'], ['--scale 0: expected a number above 0']),
    (['bench', '--rounds', '0'], ['--rounds 0: expected']),
    (['bench', '--decode', '--batch-sizes', '1,-2'], ['--batch-sizes=-2: expected']),
    (['bench', '--step', 'lm/quickstart', '--plot', 'x.png'], ['executors (no flag), --by-scope; timed']),
    (['bench', '--prompt', '3'], ['--prompt is of --decode; timed is executors']),
    (['bench', '--config.train.steps=3'], ['--config is of --step, --by-scope, --start']),
    (['bench', '--step', 'lm/quickstart', '--start', '--feed'], ['--start and --feed: one of them']),
    (['fit', 'runs.csv', '--law', 'clark', '--seed', '-1'], ['--seed -1: expected', 'nearest: 0']),
    (['fit', 'runs.csv', '--law', 'clark', '--fix', 'e_max=inf'], ['--fix e_max=inf: expected a finite']),
    (['cache', 'stdlib', '--extra-ids', '-1'], ['--extra-ids -1: expected']),
    (['tables', 'hash/kinds', '--kind', 'random', '--out', 'x.npz', '--seed', '4294967296'],
     ['from 0 to 4294967295']),
    (['compare', 'lm/stdlib', '--seeds', '0,-1'], ['--seeds=-1: expected a whole number from 0 to']),
    (['compare', 'lm/stdlib', '--seeds', '0,0'], ['--seeds 0,0: give different']),
    (['sweep', 'scaling', '--launcher', 'local:jobs=0'], ['jobs=0: expected a whole number of at least 1']),
    (['sweep', 'scaling', '--launcher', 'slurm:time=-1'], ['time=-1: expected']),
    (['sweep', 'scaling', '--launcher', 'local:poll=nan'], ['poll=nan: expected a number above 0']),
    (['compile', 'lm/stdlib', '--topology', 'cpu:99999999999'], ['at most 8192; nearest: cpu:8192']),
    (['compile', 'lm/stdlib', '--topology', 'cpu:\u00b2'], ['the number of chips']),
])
def test_mistakes_are_one_line_and_exit_code_2(mistake, argv, words):
  line = mistake(*argv)
  assert all(word in line for word in words), line


def test_overrides_are_split_from_the_rest():
  assert main.split_overrides(['a', '--config.x=1', '--json', '--config.y', '2', 'b', '--config.z']) == (
      ['a', '--json', 'b'], ['--config.x=1', '--config.y=2', '--config.z'])


def _fail(monkeypatch, error):
  def run(args):
    raise error
  monkeypatch.setattr('stmoe.cli.list.run', run)


def test_debug_shows_the_traceback(command, monkeypatch):
  _fail(monkeypatch, errors.UserError('wrong'))
  assert command('list') == (2, '', 'stmoe: wrong\n')
  with pytest.raises(errors.UserError):
    command('list', '--debug')


def test_our_own_faults_keep_their_traceback(command, monkeypatch):
  _fail(monkeypatch, ValueError('a fault'))
  with pytest.raises(ValueError, match='a fault'):
    command('list')


def test_interrupt_exits_with_130(command, monkeypatch):
  _fail(monkeypatch, KeyboardInterrupt())
  assert command('list') == (130, '', 'stmoe: interrupted\n')


def test_full_disk_is_one_line(mistake, monkeypatch):
  full = OSError(errno.ENOSPC, 'No space left on device', '/runs/a/metrics.jsonl')
  _fail(monkeypatch, full)
  assert '/runs/a/metrics.jsonl' in mistake('list') and 'no space left' in mistake('list')
  wrapped = RuntimeError('the save failed')
  wrapped.__cause__ = ValueError('RESOURCE_EXHAUSTED: write: No space left on device')
  _fail(monkeypatch, wrapped)
  assert 'no space left on device' in mistake('list')


@pytest.mark.parametrize('error', [
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 6837058792 bytes.'),
    RuntimeError('INTERNAL: Error dispatching computation: Out of memory allocating 524288000000000 bytes.'),
    MemoryError('Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)')])
def test_memory_that_is_not_there_is_one_line(mistake, monkeypatch, error):
  _fail(monkeypatch, error)
  assert 'out of memory' in mistake('list') and 'nearest: a smaller train.batch_size' in mistake('list')


def test_what_the_system_refuses_of_a_file_is_one_line(mistake, monkeypatch):
  _fail(monkeypatch, PermissionError(errno.EACCES, 'Permission denied', '/root/x'))
  assert mistake('list') == 'stmoe: /root/x: Permission denied'
  monkeypatch.undo()
  assert 'File name too long' in mistake('eval', 'a' * 300)


def test_a_terminal_without_the_letters_gets_their_codes(tmp_path, monkeypatch):
  (tmp_path / 'caf\u00e9\udce9.py').write_text(f'from stmoe.configs.lm.text import get_config  # {"x" * 9}\n')
  streams = [io.TextIOWrapper(io.BytesIO(), encoding='ascii') for _ in range(2)]
  monkeypatch.setattr(sys, 'stdout', streams[0])
  monkeypatch.setattr(sys, 'stderr', streams[1])
  assert main.main(['show', str(tmp_path / 'caf\u00e9\udce9.py')]) == 0
  assert main.main(['show', 'lm/t\u00e9xt\udce9']) == 2
  for stream, text in zip(streams, (b'caf\\xe9\\udce9', b"'lm/t\\xe9xt\\udce9'")):
    stream.flush()
    assert text in stream.buffer.getvalue()


def test_a_closed_pipe_is_no_error():
  """`stmoe list | head -0` ends quietly."""
  code = 'import sys, time; from stmoe.cli import main; time.sleep(0.1); sys.exit(main.main(["list"]))'
  done = subprocess.run(f"{sys.executable} -c '{code}' | true", shell=True, capture_output=True, text=True,
                        check=True)
  assert done.stderr == ''


def test_commands_declare_the_two_functions():
  """Every file of the folder is a command: nothing else lives there."""
  for name in main.commands():
    module = importlib.import_module(f'stmoe.cli.{name}')
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)
