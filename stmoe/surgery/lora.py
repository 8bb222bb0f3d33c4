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
  if config.model.get('adapter') is not None:
    raise errors.UserError(f'model.adapter: the start has an adapter already, {config.model.adapter.name}; '
                           'nearest: stmoe compress START merge_adapter, and then from there')
  return {'model.adapter': adapter, 'train.trainable': 'adapter'}


def layers(config: ml_collections.ConfigDict, letters: str, **fields) -> dict:
  """Returns the changes of `config` that make a layer with `fields` of the dense layer of each letter.

  What the dense layer says of itself stays: the arrays of both are called alike.

  Args:
    letters: of blocks with dense layers; '' = all that the model has.
  Raises:
    UserError: no block of a letter has a dense layer, or one is narrower than the rank.
  """
  used = {letter for stack in ('encoder', 'decoder', 'layers') for unit, _ in config.model.get(stack, ())
          for letter in unit}
  dense = sorted(letter for letter in used if config.blocks[letter].layer == 'dense')
  if not dense or {*letters} - {*dense}:
    raise errors.UserError(f'letters={letters!r}: dense layers are in the blocks '
                           f'{", ".join(dense) or "of no letter"}; nearest: '
                           + (''.join(dense) if dense else 'lora, which sparse models take, too'))
  changes = {}
  for letter in letters or dense:
    section = config.blocks[letter]
    wide = min(section.d_ff, config.model.d_model)
    if fields['rank'] > wide:
      raise errors.UserError(f'rank={fields["rank"]}: matrices of blocks.{letter} are {config.model.d_model} '
                             f'x {section.d_ff}; nearest: {wide}')
    changes[f'blocks.{letter}'] = section.to_dict() | fields
  return changes
