"""The pre-training run of an ST-MoE model, from an entry of `paper.SIZES`."""

from stmoe.configs import common
from stmoe.configs import t5
from stmoe.configs.st_moe import paper

# Where the extra dense layer stands -> (encoder unit, decoder unit); f has no attention.
UNITS = dict(after=('dddmf', 'dddnf'), before=('dddfm', 'dddfn'), none=('dddm', 'dddn'))


def pretraining(size, steps, extra='after', router=(), encoder_router=(), bank=()):
  """Returns the unlocked config of `size`.

  Args:
    size:   entry of paper.SIZES; without experts the dense model.
    extra:  a key of UNITS.
    router, encoder_router: fields of the routers of both stacks, and of the encoder's alone,
      that differ from the paper's.
    bank:   fields of the experts that differ from the paper's.
  """
  repeats = size['layers'] // paper.EVERY
  units = common.choose('extra', extra, UNITS) if size['experts'] else ('dddd', 'dddd')
  d = t5.dense(size['d_ff'], init_scale=paper.INIT_SCALE)
  c = t5.pretraining(steps)
  c.model = t5.model(size, *(((unit, repeats),) for unit in units), init_scale=paper.INIT_SCALE)
  c.blocks = dict(d=d)
  if not size['experts']:
    c.mesh.update(data=-1, expert=1)
    return c
  if extra != 'none':
    c.blocks.f = dict(d, attention=False)
  fields = dict(name='st_moe', num_experts=size['experts'], k=2, second_policy='random',
                threshold=paper.THRESHOLD,
                capacity_factor=size.get('capacity_factor', paper.CAPACITY_FACTOR)) | dict(router)
  experts = t5.bank(size['d_ff'], init_scale=paper.INIT_SCALE) | dict(bank)
  c.blocks.m, c.blocks.n = t5.sparse(fields, experts, size.get('sequences', paper.SEQUENCES))
  c.blocks.m.router.update(dict(encoder_router))
  c.losses.update(balance=(paper.BALANCE, 'mean'), z=(size.get('z', paper.ROUTER_Z), 'mean'))
  return c
