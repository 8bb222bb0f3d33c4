"""Pages say what the results beside them say."""

import pytest

from stmoe.experiments import claims


@pytest.mark.parametrize('name', claims.answered())
def test_the_page_has_the_verdicts_of_its_results(name):
  page = (claims.FOLDER / name / 'README.md').read_text(encoding='utf-8')
  assert claims.text(name) in page


def test_the_first_page_has_all_verdicts():
  assert claims.table() in (claims.FOLDER / 'README.md').read_text(encoding='utf-8')


def test_a_question_without_results_is_named(monkeypatch):
  monkeypatch.setattr(claims, 'answered', lambda: ['momentum'])
  with pytest.raises(SystemExit, match='momentun has no results; nearest: momentum'):
    claims.main(['momentun'])
