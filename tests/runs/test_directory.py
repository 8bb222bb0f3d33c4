"""config.json of a run directory: what it must hold, and that its checkpoint was trained with it."""

import json
import subprocess

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.runs import directory as rundir


@pytest.fixture
def run(tmp_path):
  """A run directory with the meta of two checkpoints, and no arrays."""
  cfg, _ = experiment.load('lm/text:smoke')
  rundir.claim(tmp_path, cfg)
  for folder in ('checkpoints/2', 'checkpoints/10', 'checkpoints/12.tmp', 'best/2'):
    (tmp_path / folder / 'meta').mkdir(parents=True)
    (tmp_path / folder / 'meta' / 'metadata').write_text(json.dumps(dict(config=rundir.identity(cfg))))
  return tmp_path


def change(run, **fields):
  """Sets fields 'a__b' of config.json; None removes one."""
  config = json.loads((run / 'config.json').read_text())
  for field, value in fields.items():
    *groups, key = field.split('__')
    holder = config
    for group in groups:
      holder = holder[group]
    holder[key] = value
    if value is None:
      del holder[key]
  (run / 'config.json').write_text(json.dumps(config))


def test_a_configuration_comes_back(run):
  cfg, _ = experiment.load('lm/text:smoke')
  for one in (rundir.load(run), rundir.opened(run), rundir.opened(run, 2), rundir.opened(run, within='best')):
    assert experiment.to_json(one) == experiment.to_json(cfg)
  assert sorted(rundir.saved(run)) == [2, 10] and rundir.saved(run / 'nowhere') == []


@pytest.mark.parametrize('fields', [
    dict(seed=1), dict(train__batch_size=16), dict(model__d_model=32), dict(data__length=8),
    dict(schedule=None)])
def test_another_configuration_is_not_the_checkpoint_s(run, fields):
  change(run, **fields)
  for look in (rundir.opened, rundir.trusted, lambda path: rundir.opened(path, 2),
               lambda path: rundir.opened(path, within='best')):
    with pytest.raises(errors.Damaged, match='config.json: is not the configuration that the checkpoint of'):
      look(run)


def test_what_a_run_may_change_is_no_other_configuration(run):
  change(run, train__steps=7, eval__batches=3, checkpoint__keep=9, data__cache_dir='elsewhere')
  assert rundir.opened(run).train.steps == 7


def test_what_is_not_known_is_not_compared(run):
  change(run, seed=1)
  (run / 'checkpoints' / '10' / 'meta' / 'metadata').write_text('{"config": null}')      # imported
  assert rundir.opened(run).seed == 1
  (run / 'checkpoints' / '10' / 'meta' / 'metadata').write_text('{"con')                 # arrays come later
  assert rundir.opened(run).seed == 1


def test_without_a_checkpoint(tmp_path):
  rundir.claim(tmp_path, experiment.load('lm/text:smoke')[0])
  assert rundir.trusted(tmp_path).seed == rundir.load(tmp_path).seed
  with pytest.raises(errors.UserError, match='has no checkpoint yet'):
    rundir.opened(tmp_path)
  with pytest.raises(errors.UserError, match='has no best checkpoint; set checkpoint.best'):
    rundir.opened(tmp_path, within='best')


@pytest.mark.parametrize('fields, reason', [
    (dict(model=None), 'has no section model'),
    (dict(eval__batch_size='x'), "eval.batch_size='x': expected a whole number"),
    (dict(mesh=[]), 'mesh=\\(\\): expected a group of fields'),
    (dict(train__clip='no'), "train.clip='no': expected a number"),
    (dict(optimizer=3), 'optimizer=3: expected a group'),
    (dict(checkpoint__async_save=1), 'checkpoint.async_save=1: expected True or False'),
    (dict(checkpoint__best=4), 'checkpoint.best=4: expected a text'),
    (dict(decode=3), 'decode=3: expected a group'),
    ({'a.b': 1}, 'config.json: ValueError')])
def test_a_field_of_another_type_is_one_line(run, fields, reason):
  change(run, **fields)
  with pytest.raises(errors.Damaged, match=reason):
    rundir.load(run)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
  cfg, _ = experiment.load('lm/text:smoke')
  with cfg.unlocked():
    cfg.train.clip = float('nan')
  with pytest.raises(errors.UserError, match='the configuration holds NaN'):
    rundir.claim(tmp_path, cfg)
  assert list(tmp_path.iterdir()) == []


def test_what_config_json_does_not_say_has_its_default(run):
  """It is another file, of which the checkpoints say that it is theirs, and yet the same configuration."""
  cfg, _ = experiment.load('lm/text:smoke')
  change(run, blocks__m__router__jitter=None, model__attention=None, train__trainable=None, decode=None)
  assert rundir.load(run).to_dict() == cfg.to_dict()
  assert rundir.whole(run) == json.loads(experiment.to_json(cfg))
  digest = rundir.identity_of(run)
  for step in ('2', '10'):
    (run / 'checkpoints' / step / 'meta' / 'metadata').write_text(json.dumps(dict(config=digest)))
  assert digest != rundir.identity(cfg) and rundir.opened(run).to_dict() == cfg.to_dict()
  longer, _ = experiment.load('lm/text:smoke', ['train.steps=700', 'eval.examples=3'])
  rundir.claim(run, longer)              # goes on, and its file keeps lacking what it lacked
  assert rundir.identity_of(run) == digest
  assert rundir.opened(run, 2).to_dict() == longer.to_dict()
  assert 'attention' not in rundir.written(run).model and rundir.written(run).eval.examples == 3
  other, _ = experiment.load('lm/text:smoke', ['blocks.m.router.jitter=0.5'])
  with pytest.raises(errors.UserError, match='blocks.m.router.jitter is 0.01 there and 0.5 here'):
    rundir.claim(run, other)


def test_a_run_is_a_name(run):
  assert not rundir.is_run('lm/text') and rundir.is_run(run)
  assert rundir.named('lm/text:smoke')[0].to_dict() == rundir.named(run)[0].to_dict()
  cfg, name = rundir.named(run, ['seed=4', 'blocks.m.router.name=st_moe'])
  assert cfg.seed == 4 and name == str(run)
  router = experiment.load('lm/text:smoke', ['blocks.m.router.name=st_moe'])[0].blocks.m.router
  assert cfg.blocks.m.router.to_dict() == router.to_dict()


def test_a_run_that_nobody_names_a_folder_for_has_its_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = 'lm/text:smoke'
  cfg, other, more = (experiment.load(name, overrides)[0] for overrides in (
      [], ['seed=1'], ['train.steps=9', 'mesh.data=2', 'eval.every=3']))
  plain = rundir.default(name, cfg)
  assert str(plain) == 'runs/lm_text_smoke' == str(rundir.default(name, other))     # nothing is there yet
  rundir.claim(plain, cfg)
  assert rundir.default(name, cfg) == rundir.default(name, more) == plain            # the run goes on
  own = rundir.default(name, other)
  assert own != plain and own.name.startswith('lm_text_smoke-') and rundir.default(name, other) == own
  assert rundir.default('lm_text:smoke', other) == own                # another name of the same letters
  rundir.claim(own, other)
  (plain / 'config.json').unlink()
  assert rundir.default(name, other) == own                           # it stays where it is


def test_a_run_made_of_others_has_a_folder_for_each(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cfg, _ = experiment.load('lm/text:smoke')
  plain = rundir.claim(rundir.default('lm/text:smoke', cfg, ['runs/a']), cfg)
  lineage = [dict(method='finetune', options={}, parents=[dict(
      run='runs/a', step=3, config=None, checkpoint=None, made=None)])]
  (plain / 'ancestry.json').write_text(json.dumps(dict(facts={}, lineage=lineage)))
  assert rundir.default('lm/text:smoke', cfg, ['runs/a']) == plain
  others = ([], ['runs/b'], ['runs/a', 'runs/b'])
  folders = {rundir.default('lm/text:smoke', cfg, parents) for parents in others}
  assert len(folders) == 3 and plain not in folders


def test_what_is_no_run_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cfg, _ = experiment.load('lm/text:smoke')
  (tmp_path / 'runs' / 'lm_text_smoke').mkdir(parents=True)
  assert rundir.default('lm/text:smoke', cfg).name == 'lm_text_smoke'               # an empty folder
  (tmp_path / 'runs' / 'lm_text_smoke' / 'compare.json').write_text('{}')
  assert rundir.default('lm/text:smoke', cfg).name != 'lm_text_smoke'


def test_the_revision_is_of_this_code_and_not_of_what_lies_around_it(tmp_path, monkeypatch):
  git = lambda *words: subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b',
                                       *words], check=True, capture_output=True, text=True).stdout.strip()
  (tmp_path / 'venv').mkdir()
  (tmp_path / '.gitignore').write_text('venv\n')
  git('init'), git('add', '.'), git('commit', '-m', 'other code')
  copy = tmp_path / 'venv' / 'directory.py'
  copy.write_text('')
  monkeypatch.setattr(rundir, '__file__', str(copy))
  assert rundir._revision() is None
  git('add', '-f', 'venv'), git('commit', '-m', 'this code')
  assert rundir._revision() == git('rev-parse', 'HEAD')
  copy.write_text('changed')
  assert rundir._revision() == git('rev-parse', 'HEAD') + '+'


def test_a_folder_of_another_experiment_without_a_step_may_be_removed(tmp_path, run):
  here = experiment.load('lm/text:smoke', ['seed=1'])[0]
  began = tmp_path / 'began'
  rundir.claim(began, experiment.load('lm/text:smoke')[0])
  with pytest.raises(errors.UserError, match=f'choose another --workdir, or remove {began}, which has not'):
    rundir.claim(began, here)
  (began / 'metrics.jsonl').write_text('{"step": 1}\n')
  for path in (began, run):
    with pytest.raises(errors.UserError, match='seed is 0 there and 1 here; choose another --workdir$'):
      rundir.claim(path, here)
