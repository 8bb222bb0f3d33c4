"""Students: a pyramid keeps its form, the published depth comes out, the blocks are the teacher's."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.surgery import layout
from stmoe.surgery import pr_moe
from stmoe.surgery import sparse
from tests.surgery import trained


def test_a_pyramid_of_24_layers_has_21_in_proportion():
  letters = 'dm' * 10 + 'dp' * 2
  numbers = pr_moe.kept(letters, 0.875)
  left = ''.join(letters[number] for number in numbers)
  assert (len(left), left.count('d'), left.count('m'), left.count('p')) == (21, 10, 9, 2)
  assert numbers == sorted({*numbers}) and ''.join(u * n for u, n in pr_moe.pattern(left)) == left
  assert pr_moe.pattern('dm' * 10 + 'dp' * 2) == (('dm', 10), ('dp', 2)) and pr_moe.pattern('ab') == (
      ('a', 1), ('b', 1))


def test_a_student_is_made_of_its_teachers_blocks():
  cfg = trained.config()
  params = trained.params(cfg)
  after, changes = pr_moe.operate(params, cfg, trained.none, keep=0.5, stay='first')
  assert changes == {'model.layers': (('d', 1), ('m', 1))}
  blocks = lambda tree: layout.at(tree, ('decoder', 'layers'))
  assert [*blocks(after)] == [0, 1]
  assert all(a is b for a, b in zip(jax.tree.leaves(blocks(after)[1]), jax.tree.leaves(blocks(params)[1]),
                                    strict=True))
  student = sparse.changed(cfg, changes)
  # Blocks that add nothing may as well go.
  silent = {('decoder', 'layers', number, *path): jnp.zeros_like(layout.at(params, (
      'decoder', 'layers', number, *path))) for number, path in (
          (2, ('attention', 'wo')), (2, ('layer', 'wo')), (3, ('attention', 'wo')),
          (3, ('layer', 'experts', 'wo')), (3, ('layer', 'experts', 'bo')))}
  np.testing.assert_allclose(trained.logits(cfg, sparse.replaced(params, silent)),
                             trained.logits(student, after), rtol=1e-5, atol=1e-5)
