"""What experiments/rewiring makes of texts and of measurements, by hand."""

from stmoe.experiments import measuring
from stmoe.experiments.rewiring import measure
from stmoe.experiments.rewiring import table
from stmoe.experiments.rewiring import texts

FOUND = dict(
    prompts=dict(plain=3.0, adapted=2.5, random=3.5), texts=dict(plain=2.0, adapted=1.75, random=2.25),
    rows=4, gain=0.25, gain_error=0.1, improved=dict(prompts=1.0, texts=0.5),
    changed=dict(decoder_00=0.5, decoder_01=0.25), choices=dict(decoder_00=2.0, decoder_01=1.0),
    largest={'0': 0.5, '1': 0.75}, seconds=dict(adapt=6.0, read=2.0))


def test_columns_by_hand():
  found = measure.columns(FOUND)
  # A quarter of a token's experts changed in both layers; adapting took three times a reading.
  assert found['changed'] == 0.25 and found['cost'] == 3 and found['largest'] == 0.75
  assert found['texts/adapted'] == 1.75 and found['prompts/random'] == 3.5 and found['gain'] == 0.25


def test_the_table_has_means_and_spreads(tmp_path):
  case = dict(name='top2', text='code', setting='usual') | measure.columns(FOUND)
  cases = [case | dict(seed=seed, gain=gain) for seed, gain in enumerate((0.25, 0.75))]
  measuring.write(tmp_path / measure.TABLE, cases)
  # Of 1/4 and 3/4 the mean is 1/2, the deviation sqrt(1/8).
  assert list(table.lines(table.rows(tmp_path / measure.TABLE)))[2] == (
      '| top2 | code | usual | 3.0000 | 2.5000 | 2.0000 | 1.7500 | 2.2500 | +0.5000 ± 0.3536 | 50% | 25.0% '
      '| 3.0 | 2 |')


def test_texts_are_excerpts_of_one_size(tmp_path, monkeypatch):
  monkeypatch.setattr(texts, 'licences', lambda: 'ab' * 40_000)
  monkeypatch.setattr(texts, 'code', lambda: 'éa' * 40_000)          # 1,024 bytes end in half a character
  paths = texts.write(tmp_path / 'texts')
  assert paths['licences'].stat().st_size == texts.EXCERPTS * texts.BYTES
  assert set(paths['code'].read_text(encoding='utf-8')) == {'a', 'é'}


def test_there_are_licences_enough():
  assert len(texts.licences()) > 2 * texts.EXCERPTS * texts.BYTES


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
  assert measure.main([str(tmp_path)]) == measure.main([]) == 2
  assert capsys.readouterr().err.count('\n') == 2


def test_recorded_lines_are_found_again(tmp_path):
  assert measure.recorded(tmp_path) == {}
  (tmp_path / measure.FILE).write_text('{"text": "code", "setting": "usual", "found": {"gain": 0.5}}\n')
  assert measure.recorded(tmp_path) == {('code', 'usual'): {'gain': 0.5}}
