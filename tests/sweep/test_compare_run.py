"""The whole command on a small text: train, tabulate, plot, report, and say so at once when done."""

import json

import pytest

from stmoe.cli import main
from stmoe.runs import owner
from tests.analysis import synthetic

TINY = ['--config.model.d_model=32', '--config.model.num_heads=2', '--config.model.head_dim=16',
        '--config.blocks.d.d_ff=64', '--config.data.length=32', '--config.train.steps=4',
        '--config.train.log_every=2', '--config.train.stats_every=2', '--config.eval.every=2',
        '--config.eval.batches=1', '--config.checkpoint.every=4', '--config.schedule.warmup_steps=1']


@pytest.fixture(scope='module')
def command(tmp_path_factory):
  root = tmp_path_factory.mktemp('compare')
  text = root / 'text.txt'
  text.write_text(''.join(f'{i} squared is {i * i}; half of it is {i * i / 2}.\n' for i in range(400)))
  return ['compare', 'lm/text:smoke', '--methods', 'dense,switch', '--workdir', str(root / 'out'),
          f'--config.data.files={text}', f'--config.data.cache_dir={root / "cache"}', *TINY]


def test_compare_trains_reports_and_is_done(command, capsys, monkeypatch):
  assert main.main(command) == 0
  said = capsys.readouterr()
  out = command[command.index('--workdir') + 1]
  rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line[:6] in ('dense ', 'switch')}
  assert set(rows) == {'dense', 'switch'} and 'stmoe compare' in said.out
  with open(f'{out}/compare.json', encoding='utf-8') as f:
    content = json.load(f)
  dense, switch = content['jobs']
  # The router's product makes a Switch step dearer by a little; four steps stay four.
  assert dense['flops'] < switch['flops'] < 1.1 * dense['flops'] and switch['steps'] == 4
  assert content['results']['switch']['flops']['mean'] == pytest.approx(switch['flops'])
  with open(f'{out}/report.html', encoding='utf-8') as f:
    page = f.read()
  assert 'Where tokens go' in page and page.count('class="routed"') == 1
  with open(f'{out}/plots/routed_switch.png', 'rb') as f:
    assert f.read(4) == b'\x89PNG'

  def no_training(*args):
    raise AssertionError('a finished comparison trains nothing')

  monkeypatch.setattr('stmoe.train.loop.train', no_training)
  assert main.main(command) == 0
  assert capsys.readouterr().out == said.out
  with owner.hold(out):
    assert main.main(command) == 2 and 'is in use by process' in capsys.readouterr().err

  assert main.main([*command, '--config.seed=7']) == 2               # another comparison in the same place
  assert 'holds another comparison' in capsys.readouterr().err

  # The same runs through `stmoe report`, with a text of the user's.
  text = next(word for word in command if 'data.files' in word).partition('=')[2]
  assert main.main(['report', f'{out}/switch', f'{out}/dense', '-o', f'{out}/both.html', '--text', text]) == 0
  with open(f'{out}/both.html', encoding='utf-8') as f:
    assert 'squared' in ''.join(part.partition('<')[0] for part in f.read().split('">'))
  assert main.main(['report', f'{out}/switch', '--text', f'{out}/nothing.txt']) == 2


def test_equal_time_gives_the_slower_method_fewer_steps(tmp_path, monkeypatch):
  seconds = {'dense': 0.1, 'switch': 0.25}
  trained = {}

  def train(config, folder, name):
    method = name.partition('method=')[2]
    trained[folder.relative_to(tmp_path).as_posix()] = config.train.steps
    path = synthetic.write_run(folder, method, layers=(), steps=config.train.steps)
    lines = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    lines = [dict(line, time=5.0 + line['step'] * seconds[method]) for line in lines]
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return 0

  monkeypatch.setattr('stmoe.train.loop.train', train)
  assert main.main(['compare', 'lm/text:smoke', '--methods', 'dense,switch', '--by', 'time', '--workdir',
                    str(tmp_path), *TINY, '--config.train.steps=100']) == 0
  # 100 steps of 0.1 s are 10 s: 40 steps of 0.25 s. The five seconds before the first line do not count.
  assert trained == {'calibration/dense': 30, 'calibration/switch': 30, 'dense': 100, 'switch': 40}


@pytest.mark.parametrize('named', [('dense', 'switch'), ('',)], ids=['runs', 'their folder'])
def test_plot_draws_runs_in_the_same_axes(tmp_path, capsys, named):
  for name in ('dense', 'switch'):
    synthetic.write_run(tmp_path / name, name)
  assert main.main(['plot', *(str(tmp_path / name) for name in named), '--out', str(tmp_path / 'plots')]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 4
  made = {path.name for path in (tmp_path / 'plots').iterdir()}
  assert {'loss.png', 'loss.svg', 'routing_health.png', 'expert_load_switch.svg'} <= made


@pytest.mark.parametrize('words, said', [
    (['plot', '{tmp}'], 'not a run directory'),
    (['compare', 'lm/quikstart'], 'nearest: lm/quickstart'),
    (['compare', 'lm/quickstart', '--seeds', '1,1'], '--seeds 1,1'),
    (['compare', 'lm/quickstart', '--methods', 'dense,swich'], 'switch'),
    (['compare', 'lm/quickstart', '--by', 'steps'], 'steps'),
])
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, words, said):
  assert main.main([word.format(tmp=tmp_path) for word in words]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count('\n') == 1
