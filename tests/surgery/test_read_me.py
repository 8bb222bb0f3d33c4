"""Read-ME: masks are of the largest units but one, a domain is a file or a task of the data."""

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import read_me


def config(**data):
  return ml_collections.ConfigDict(dict(data=dict(dict(files=(), mixture=()), **data)))


def test_masks_leave_one_unit_fewer_and_all_at_a_share_of_1():
  sizes = np.array([[1.0, 4, 3, 2], [4, 4, 4, 1]])
  assert read_me.masks(sizes, 0.75).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]       # ties lose more
  assert (read_me.masks(sizes, 1.0) == 1).all()


def test_domains_are_tasks_or_files():
  assert read_me.domains(config(files=('a', 'b'))) == [dict(files=('a',)), dict(files=('b',))]
  tasks = read_me.domains(config(files=('a', 'b'), mixture=(('x', 1.0), ('y', 2.0))))
  assert tasks == [dict(mixture=(), task='x'), dict(mixture=(), task='y')]
  with pytest.raises(errors.UserError, match='there is one; nearest: --config.data.files=A,B'):
    read_me.domains(config(files=('a',)))
