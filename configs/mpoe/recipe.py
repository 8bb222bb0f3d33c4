"""What the experiments of MPOE share: how the central tensors train."""


def central(c, mask, freeze):
  """Sets how the central tensors of `c` train: masked with this probability, frozen, or like all else."""
  if mask or freeze:
    c.groups = dict(central=dict(masked=mask, train=not freeze))
