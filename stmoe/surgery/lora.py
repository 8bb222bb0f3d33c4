"""LoRA: a low-rank adapter beside matrices that do not change (arXiv:2106.09685).

  stmoe finetune runs/try finetune/jsonl --config.finetune.adapter=lora:rank=16,targets=attention+layer
"""

import ml_collections

from stmoe import errors
from stmoe import ranges


def adapt(config: ml_collections.ConfigDict, *, targets: ranges.Text = 'attention', rank: ranges.Count = 8,
          alpha: ranges.Any = 16.0, dropout_rate: ranges.Below1 = 0.0, rslora: ranges.Flag = False,
          dora: ranges.Flag = False, gaussian: ranges.Flag = False) -> dict:
  """Returns the changes of `config`, dict 'a.b' -> value, that put low-rank parts beside its matrices.

  The fields are those of `parts/adapters/lora.py`.
  Raises UserError for a model that has an adapter.
  """
  return beside(config, dict(name='lora', targets=targets, rank=rank, alpha=alpha, dropout_rate=dropout_rate,
                             rslora=rslora, dora=dora, gaussian=gaussian))


def beside(config: ml_collections.ConfigDict, adapter: dict | None) -> dict:
  """Returns the changes of `config` that put the section `adapter` beside its matrices; only adapters train.

  Raises UserError for a model that has an adapter.
  """
  unadapted(config)
  return {'model.adapter': adapter, 'train.trainable': 'adapter'}


def unadapted(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for a configuration whose model has an adapter already."""
  if config.model.get('adapter') is not None:
    raise errors.UserError(f'model.adapter: the start has an adapter already, {config.model.adapter.name}; '
                           'nearest: stmoe compress START merge_adapter, and then from there')
