"""The folder that an import, an export or a smaller run becomes: whole or not there, made by one process."""

import pytest

from stmoe import errors
from stmoe.runs import whole as beside


def test_a_folder_appears_whole_and_what_a_kill_left_is_swept(tmp_path):
  left = tmp_path / '.new.partial'
  (left / 'source').mkdir(parents=True)
  (left / 'config.json').write_text('half')
  with beside.new(tmp_path / 'new') as path:
    assert [p.name for p in path.iterdir()] == ['owner.json']
    (path / 'mine').touch()
  assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')) == ['new', 'new/mine']


def test_logs_of_a_sweep_stay(tmp_path):
  (tmp_path / 'new').mkdir()
  with (tmp_path / 'new' / 'sweep.log').open('a') as log:
    with beside.new(tmp_path / 'new') as path:
      (path / 'mine').touch()
    log.write('made')
  assert (tmp_path / 'new' / 'sweep.log').read_text() == 'made' and (tmp_path / 'new' / 'mine').exists()
  with pytest.raises(errors.UserError, match='not an empty folder'), beside.new(tmp_path / 'new'):
    pass


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path):
  with beside.new(tmp_path / 'new') as path:
    (path / 'mine').touch()
    with pytest.raises(errors.UserError, match='is in use by process'), beside.new(tmp_path / 'new'):
      pass
  assert (tmp_path / 'new' / 'mine').exists()


def test_what_took_the_place_meanwhile_stays(tmp_path):
  with pytest.raises(errors.UserError, match='new: Directory not empty'), beside.new(tmp_path / 'new'):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'theirs').touch()
  assert [p.name for p in tmp_path.iterdir()] == ['new'] and (tmp_path / 'new' / 'theirs').exists()


def test_an_error_leaves_nothing(tmp_path):
  with pytest.raises(KeyError), beside.new(tmp_path / 'new') as path:
    (path / 'mine').touch()
    raise KeyError
  assert list(tmp_path.iterdir()) == []
