"""What the forward of a unit keeps for its backward; the rest is computed again."""

import jax
import jax.extend.core

# A pass over what is read at most, which XLA makes part of the operation that needs the result. Comparisons
# are not among them: a mask takes a byte, and what it was made of (dropout: random numbers) may take four.
ELEMENTWISE = frozenset({
    'abs', 'add', 'add_any', 'broadcast_in_dim', 'concatenate', 'convert_element_type', 'copy', 'div',
    'expand_dims', 'integer_pow', 'max', 'min', 'mul', 'neg', 'pad', 'reshape', 'select_n', 'sign', 'slice',
    'split', 'square', 'squeeze', 'sub', 'transpose'})


def all_but_elementwise(primitive: jax.extend.core.Primitive, *inputs: jax.core.ShapedArray,
                        **parameters) -> bool:
  """Returns whether an output [...] is kept: of products, sums, exponentials, random numbers and the like.

  What is cast to fewer bytes is kept as well: otherwise what was cast would be kept.
  """
  if primitive.name == 'convert_element_type':
    return parameters['new_dtype'].itemsize < inputs[0].dtype.itemsize
  return primitive.name not in ELEMENTWISE


# What a configuration calls them. 'none': all that the backward reads is kept. 'elementwise': as above, in a
# scan. 'full': what enters a unit is kept. 'dots': products are, with 'no_batch' those with weights.
POLICIES = {
    'none': None,
    'elementwise': all_but_elementwise,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_saveable,
    'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
