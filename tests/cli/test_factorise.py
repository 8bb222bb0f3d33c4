"""`stmoe factorise`: it has the surgeries that begin with a dense model, and their mistakes are one line."""

import pytest


@pytest.mark.parametrize('words, said', [
    (['prune'], ["no factorisation is called 'prune'", 'there are: ', 'factor_llm, ']),
    (['factor_llm:chunks=3'], ["factor_llm has no field 'chunks'", 'num_experts']),
    (['dynamic_dino:gates=soft'], ["gates='soft'", 'scaled, ungated']),
    (['factor_llm'], ['is not a run directory'])])
def test_mistakes(mistake, tmp_path, words, said):
  (tmp_path / 'run').mkdir()
  line = mistake('factorise', tmp_path / 'run', *words, '--workdir', tmp_path / 'new')
  assert all(word in line for word in said), line
  assert not (tmp_path / 'new').exists()
