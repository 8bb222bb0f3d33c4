"""The table of means and spreads, by hand; what is not there is one line."""

from stmoe.experiments import claims
from stmoe.experiments import spread


def put(folder, text):
  file = folder / 'two' / 'results' / 'results.csv'
  file.parent.mkdir(parents=True)
  file.write_text(text, encoding='utf-8')


def test_means_and_spreads_by_hand(tmp_path, monkeypatch, capsys):
  put(tmp_path, 'name,seed,eval/loss,size\nb,0,1.0,1200\nb,1,3.0,1200\na,0,2.5,\n')
  monkeypatch.setattr(claims, 'FOLDER', tmp_path)
  assert spread.main(['two', 'eval/loss', 'size']) == 0
  # Of 1 and 3 the mean is 2, the deviation sqrt(2); one seed has no spread.
  assert capsys.readouterr().out.splitlines()[2:] == ['| b | 2.000 ± 1.414 | 1,200 | 2 |',
                                                      '| a | 2.500 | – | 1 |']


def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
  put(tmp_path, 'name,eval/loss\na,1\n')
  monkeypatch.setattr(claims, 'FOLDER', tmp_path)
  for words, said in ((['two', 'eval/lost'], 'no column eval/lost; nearest: eval/loss'),
                      (['one', 'x'], 'one has no results'), (['two'], 'give a question and columns')):
    assert spread.main(words) == 2
    assert said in capsys.readouterr().err
