"""The pre-training run of a Switch model, from an entry of `paper.SIZES` or `paper.RELEASED`."""

from stmoe.configs import t5
from stmoe.configs.switch import paper


def pretraining(size, experts, steps, router=None, init_scale=paper.INIT_SCALE):
  """Returns the unlocked config of `size` with `experts` experts in every sparse layer (0 = dense).

  Args:
    size:   entry of paper.SIZES or paper.RELEASED.
    router: the router and its fields, where it is not the paper's router; its fields come first.
  """
  period, layers = size['every'], size['layers']
  d = t5.dense(size['d_ff'], size['gated'], init_scale)
  bank = t5.bank(size['d_ff'], size['gated'], init_scale)
  # The sparse layer is the last of its period, in the encoder (m) and in the decoder (n).
  letters = ['d' * period] * 2 if not experts else ['d' * (period - 1) + m for m in 'mn']
  repeats = layers // period
  remaining = layers - period * repeats
  patterns = [((unit, repeats),) + ((('d', remaining),) if remaining else ()) for unit in letters]

  c = t5.pretraining(steps)
  c.model = t5.model(size, *patterns, tied=size.get('tied', False), init_scale=init_scale)
  c.blocks = dict(d=d)
  if experts:
    router = router or dict(name='switch', jitter=paper.JITTER)
    fields = dict(num_experts=experts, capacity_factor=size.get('capacity_factor', (1.25, 2.0)),
                  min_capacity=size.get('min_capacity', 4)) | router
    sequences = size.get('group', 8192) // t5.INPUTS
    c.blocks.m, c.blocks.n = t5.sparse(fields, bank, sequences)
    # Differs: Mesh-TensorFlow sums the layers' losses; flaxformer, from which these sizes are, averages.
    c.losses.balance = (paper.BALANCE, 'mean')
  else:
    c.mesh.update(data=-1, expert=1)
  c.loss.z = paper.OUTPUT_Z
  return c
