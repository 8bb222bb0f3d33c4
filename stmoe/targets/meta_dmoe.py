"""The target of Meta-DMoE: classes of images by domain, predicted after a step on the domain, and before."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.core.units import classes
from stmoe.errors import UserError

WHEN = ('adapted', 'before')


class MetaDmoe:
  """The cross entropy of the adapted student (arXiv:2210.03885); of one logit, C = 1, that of a yes or no.

  Outputs are f32[B,S,2,C], of the student after its step and before. Evaluation reports the accuracy of both
  over all images, and in the worst domain, and the accuracy of every domain. The images that adapted are
  among them, as in the paper; their labels were not used.

  Args:
    num_domains: of what is held out.
  """

  kinds, passes, run = ('labels',), 1, ''
  measures = {
      'loss/ce': targets.Measure('nats per image'),
      'eval/loss': targets.Measure('nats per image', said='eval loss {:.4f}'),
      'eval/accuracy': targets.Measure('', 'higher', 'accuracy {:.1%}'),
      'eval/worst_accuracy': targets.Measure('', 'higher', 'worst domain {:.1%}'),
      'eval/accuracy_before': targets.Measure('', 'higher', 'before adapting {:.1%}'),
      'eval/worst_accuracy_before': targets.Measure('', 'higher'),
  }

  def __init__(self, *, num_domains: ranges.Count):
    self.num_domains = num_domains

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,S], 1 of images that are judged."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the number of images that are judged."""
    return targets.divisor(self.weights(batch))

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for outputs f32[B,S,2,C]; see `targets.Target`."""
    each = classes.miss(outputs[:, :, 0], batch['labels'])           # [B, S]
    mean = jnp.sum(self.weights(batch) * each) / counts
    return mean, {'loss/ce': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict of sums: ce f32[], and by domain images f32[K] and right f32[K,2]."""
    if 'given/domain' not in batch or outputs.ndim != 4:
      raise UserError(f'loss.name=meta_dmoe judges [B,S,2,C] by domain, and the model gives '
                      f'{list(outputs.shape)}; nearest: model.name=meta_dmoe with data.source=domains')
    weights = self.weights(batch)                                    # [B, S]
    right = classes.right(outputs, batch['labels'][..., None])       # [B, S, 2]
    domain = jax.nn.one_hot(batch['given/domain'], self.num_domains)                 # [B, K]
    ce = jnp.sum(weights * classes.miss(outputs[:, :, 0], batch['labels']))
    return dict(ce=ce, images=jnp.einsum('bs,bk->k', weights, domain),
                right=jnp.einsum('bs,bsw,bk->kw', weights, right.astype(jnp.float32), domain))

  def metrics(self, totals: dict) -> dict:
    """Returns loss and accuracies: of all images, of the worst domain, and of each domain."""
    number, images = totals['weight'], totals['images']
    there = np.flatnonzero(images)
    values = {'eval/loss': totals['ce'] / number, 'eval/tokens': int(number)}
    for i, when in enumerate(WHEN):
      end = f'_{when}' if i else ''
      by_domain = totals['right'][there, i] / images[there]
      values |= {f'eval/accuracy{end}': totals['right'][:, i].sum() / number,
                 f'eval/worst_accuracy{end}': by_domain.min()}
      values |= {f'eval/domain_{k}_{when}': value for k, value in zip(there, by_domain)}
    return values
