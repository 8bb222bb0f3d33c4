"""DynMoLE: experts of adapters beside the matrices of dense layers, chosen by entropy (arXiv:2504.00661).

  stmoe finetune runs/dense finetune/jsonl --config.finetune.adapter=dynmole:num_experts=6,rank=24
"""

import ml_collections

from stmoe import ranges
from stmoe.surgery import lora

ENTROPY, BALANCE = 0.01, 0.001           # coefficients of the losses


def adapt(config: ml_collections.ConfigDict, *, num_experts: ranges.Count = 6, p: ranges.PartOf1 = 0.75,
          keep: ranges.Count = 2, threshold: ranges.PartOf1 = 0.9, q: ranges.Positive = 1.1,
          kind: ranges.Choice('tsallis', 'renyi') = 'tsallis', rank: ranges.Count = 24,
          alpha: ranges.Any = 48.0, dropout_rate: ranges.Below1 = 0.05, rslora: ranges.Flag = False,
          gaussian: ranges.Flag = False, targets: ranges.Text = '', attention: ranges.Text = '',
          letters: ranges.Text = '', entropy: ranges.NonNegative = ENTROPY,
          balance: ranges.NonNegative = BALANCE, executor: ranges.Spelled('executor') = 'blocks') -> dict:
  """Returns the changes of `config`, dict 'a.b' -> value, that put routed adapters beside its matrices.

  Args:
    num_experts, p, keep, threshold, q, kind: of the routers, see `routers/dynmole.py`.
    rank, alpha, dropout_rate, rslora, gaussian: of all adapters.
    targets, executor: see `layers/dynmole.py`.
    attention:    which matrices have LoRA, words as of `parts/adapters/lora.py`; '' = none.
    letters:      of the blocks whose dense layers get experts; '' = all.
    entropy, balance: coefficients of the routers' losses.
  Raises:
    UserError: the model has an adapter, no dense layer, or too narrow ones.
  """
  low = dict(rank=rank, alpha=alpha, rslora=rslora, gaussian=gaussian)
  router = dict(name='dynmole', num_experts=num_experts, p=p, keep=keep, threshold=threshold, q=q, kind=kind)
  changes = lora.beside(config, attention and dict(
      name='lora', targets=attention, dropout_rate=dropout_rate, **low) or None)
  return changes | {'losses.entropy': (entropy, 'mean'), 'losses.balance': (balance, 'mean')} | lora.layers(
      config, letters, layer='dynmole', router=router, targets=targets, adapter_dropout=dropout_rate,
      executor=executor, group_size=None, **low)
