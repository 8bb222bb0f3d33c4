"""MixLoRA: experts of adapters beside the dense layers of a model, and LoRA beside its attention
(arXiv:2404.15159).

  stmoe finetune runs/dense finetune/jsonl --config.finetune.adapter=mixlora:num_experts=8,k=2,rank=16
"""

import ml_collections

from stmoe import ranges
from stmoe.surgery import lora

BALANCE = 0.001                          # coefficient of the balance loss


def adapt(config: ml_collections.ConfigDict, *, num_experts: ranges.Count = 8, k: ranges.Count = 2,
          p: ranges.PartOf1 | None = None, rank: ranges.Count = 16, alpha: ranges.Any = 32.0,
          dropout_rate: ranges.Below1 = 0.05, rslora: ranges.Flag = False, dora: ranges.Flag = False,
          gaussian: ranges.Flag = False, jitter: ranges.Below1 = 0.0, targets: ranges.Text = '',
          attention: ranges.Text = 'attention', letters: ranges.Text = '',
          balance: ranges.NonNegative = BALANCE,
          executor: ranges.Spelled('executor') = 'blocks') -> dict:
  """Returns the changes of `config`, dict 'a.b' -> value, that put experts of adapters beside its layers.

  Args:
    num_experts, k, p: of the router, see `routers/mixlora.py`; p=0.8 is the dynamic variant.
    rank, alpha, dropout_rate, rslora, dora, gaussian: of all adapters.
    jitter, targets, executor: see `layers/mixlora.py`.
    attention:    which matrices have LoRA, words as of `parts/adapters/lora.py`; '' = none.
    letters:      of the blocks whose dense layers get experts; '' = all.
    balance:      coefficient of the routers' loss.
  Raises:
    UserError: the model has an adapter, no dense layer, or too narrow ones.
  """
  low = dict(rank=rank, alpha=alpha, rslora=rslora, dora=dora, gaussian=gaussian)
  router = dict(name='mixlora', num_experts=num_experts, k=k, p=p)
  changes = lora.beside(config, attention and dict(
      name='lora', targets=attention, dropout_rate=dropout_rate, **low) or None)
  return changes | {'losses.balance': (balance, 'mean')} | lora.layers(
      config, letters, layer='mixlora', router=router, targets=targets, adapter_dropout=dropout_rate,
      jitter=jitter, executor=executor, group_size=None, **low)
