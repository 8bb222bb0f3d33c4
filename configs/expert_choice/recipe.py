"""The encoder-decoders of expert choice: experts choose in the encoder, tokens in the decoder."""

from stmoe.configs import t5
from stmoe.configs.expert_choice import paper


def pretraining(size, experts, steps, encoder_router=(), capacity_factor=None):
  """Returns the unlocked config of T5 1.1 `size` (a key of t5.SIZES) after flaxformer's configurations.

  Args:
    encoder_router:  fields of the encoder's router beside these.
    capacity_factor: (train, eval) of the encoder; None = flaxformer's 1.0.
  """
  facts, widths = paper.FLAXFORMER_OPTIM, t5.SIZES[size]
  scale, repeats = facts['init_scale'], widths['layers'] // facts['every']
  c = t5.pretraining(steps)
  c.model = t5.model(widths, (('dm', repeats),), (('dn', repeats),), init_scale=scale)
  chosen = dict(name='expert_choice', num_experts=experts,
                capacity_factor=capacity_factor or facts['capacity_factor'])
  # flaxformer's top-2: raw gates, second choices always sent, all choices counted in the balance loss.
  choosing = dict(name='st_moe', num_experts=experts, k=2, normalize_gates=False, second_policy='all',
                  balance_choices='any', capacity_factor=facts['capacity_factor'])
  sequences = facts['group'] // t5.INPUTS
  bank = t5.bank(widths['d_ff'], init_scale=scale)
  encoder, _ = t5.sparse(chosen | dict(encoder_router), bank, sequences)
  _, decoder = t5.sparse(choosing, bank, sequences)
  c.blocks = dict(d=t5.dense(widths['d_ff'], init_scale=scale), m=encoder, n=decoder)
  # The encoder's layers report 0 and are counted in the mean over layers, as in flaxformer.
  c.losses.update(balance=(facts['balance'], 'mean'), z=(facts['router_z'], 'mean'))
  return c
