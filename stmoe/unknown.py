"""What is said of a field that its group of a configuration (`sections.Group`) does not have."""

import typing

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import value_ranges

RATE = ('schedule.peak', 'schedule.base', 'schedule.value')
# What other codebases call a field -> the fields that may be meant.
ELSEWHERE = dict(
    lr=RATE, learning_rate=RATE, max_lr=RATE, warmup=('schedule.warmup_steps',),
    scheduler=('schedule.name',), lr_scheduler=('schedule.name',), grad_clip=('train.clip',),
    max_grad_norm=('train.clip',), max_steps=('train.steps',), num_steps=('train.steps',),
    train_steps=('train.steps',), epochs=('train.steps',), num_epochs=('train.steps',),
    batch=('train.batch_size',), global_batch_size=('train.batch_size',),
    gradient_accumulation_steps=('train.microbatches',), seq_len=('data.length', 'data.targets_length'),
    sequence_length=('data.length', 'data.targets_length'), block_size=('data.length',),
    context_length=('data.length',), dataset=('data.task', 'data.files'), tokenizer=('data.vocab',),
    vocabulary=('data.vocab',), hidden_size=('model.d_model',), n_embd=('model.d_model',),
    num_layers=('model.layers', 'model.encoder'), n_layer=('model.layers',), n_layers=('model.layers',),
    n_head=('model.num_heads',), n_heads=('model.num_heads',), dropout=('model.dropout_rate',),
    aux_loss=('losses.balance',), aux_loss_weight=('losses.balance',), save_every=('checkpoint.every',),
    eval_interval=('eval.every',), wandb=('log.writers',), random_seed=('seed',))


def possible(group: typing.Any, key: str) -> bool:
  """Returns whether an open group may have the field `key`: its module takes it, or does not say."""
  kind, name = group.made_of or ('', '')
  taken = lookup.fields(kind, name) if kind in lookup.PACKAGES else {}
  return not taken or key in taken


def line(group: typing.Any, key: str) -> str:
  """Returns the line on field `key`: its value, the nearest fields, and which modules have such a field."""
  value, names = group.values[key], list(group.fields)
  shown = '' if hasattr(value, 'keys') else (
      f'={value if isinstance(value, str) else value_ranges.shown(value)}')
  return (f'{group.where(key)}{shown}: {group.title or group.path} has no field {key!r}'
          f'{errors.nearest(key, names)}{where_else(group, key)} (it has: {", ".join(names)})')


def where_else(group: typing.Any, key: str) -> str:
  """Returns '; decode.name=beam has it': with which choices a group has a field that it lacks, else ''."""
  from stmoe import sections             # which says what this file knows
  if not group.made_of:
    return ''
  kind, _ = group.made_of
  names = lookup.having(kind, key) if kind in lookup.PACKAGES else [
      name for name, known in declared.of_functions(sections.FUNCTIONS[kind]).items()
      if key in known and known[key].range is not None]
  return lookup.where_else(names, f'{group.where(group.chosen)}=')
