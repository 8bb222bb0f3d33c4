"""The whole command on a small text: train, tabulate, plot, report, and say so at once when done."""

import json

import pytest

from stmoe.cli import main

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

  assert main.main([*command, '--config.seed=7']) == 2               # another comparison in the same place
  assert 'holds another comparison' in capsys.readouterr().err
