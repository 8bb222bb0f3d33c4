"""Figures outside of a notebook are files."""

import sys

from stmoe.analysis import canvas


def test_without_a_notebook_a_shown_figure_is_a_file(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delitem(sys.modules, 'IPython', raising=False)
  monkeypatch.setattr(sys, 'argv', ['/somewhere/tour.py'])
  for _ in range(2):
    canvas.show(canvas.new(1, 1, 2.0, 1.0)[0])
  paths = capsys.readouterr().out.split()
  assert len(set(paths)) == 2 and all(path.startswith('figures/tour_') for path in paths)
  assert all((tmp_path / path).read_bytes().startswith(b'\x89PNG') for path in paths)
