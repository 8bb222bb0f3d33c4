"""What docstrings say of modules and of fields of configurations, read without importing what they name."""

import ast
import functools
import pathlib
import re
import textwrap
import typing

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import sections
from stmoe import value_ranges
from stmoe.plugins import kinds

WORDS = pathlib.PurePath('docs', 'concepts.md')
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
# Fields of sections that no class or function declares.
SECTIONS = {
    'seed': 'of parameters, of the order of the data, and of all that is drawn',
    'train.steps': 'of the optimizer',
    'train.batch_size': 'rows of a step, of all devices together',
    'train.microbatches': 'parts of a batch that are computed one after the other; the numbers stay the same',
    'train.clip': 'most norm of the gradient; 0 = not clipped',
    'train.log_every': 'steps between two lines of metrics.jsonl',
    'train.stats_every': 'steps between two files of router_stats',
    'train.stop_after_bad': 'steps in a row without a finite loss and gradient, after which training ends',
    'train.trainable': 'the parameters that train; section groups says more',
    'eval.every': 'steps between two evaluations',
    'eval.batches': 'of an evaluation; 0 = the whole split',
    'eval.batch_size': 'rows of a batch of evaluation',
    'eval.draws': 'predictions that are averaged, where evaluation is random',
    'eval.methods': 'how tasks are scored, too',
    'eval.examples': 'of each task that are scored; 0 = all',
    'checkpoint.every': 'steps between two checkpoints',
    'checkpoint.keep': 'how many of the newest stay',
    'checkpoint.async_save': 'saving goes on while training does',
    'checkpoint.best': 'the metric whose best checkpoint is kept, too; empty = none',
    'mesh.data': 'devices that share the batch; -1 = those that are left',
    'mesh.expert': 'devices among which the experts are split',
    'mesh.model': 'devices among which matrices are split',
    'mesh.rules': "how logical axes are split: 'fsdp', 'folded', 'axis=mesh axis', several with commas",
    'log.writers': 'services that show the metrics: tensorboard, wandb, trackio, mlflow',
    'profile.start': 'the first step that is profiled; -1 = none',
    'profile.steps': 'how many steps are profiled',
    'finetune.model': "'start' = that of the run it starts from, 'own' = the configuration's",
    'finetune.load': "'body' makes the head new, 'partial' lets arrays be new that the start has not",
    'finetune.optimizer': "'keep' takes over the start's slots",
    'finetune.dropout_rate': 'everywhere but in experts; None = as the start',
    'finetune.expert_dropout_rate': 'in experts; None = as the start',
    'finetune.capacity_factor': '(train, eval) of routers that drop tokens; None = as the start',
    'finetune.aux': 'whether router losses stay',
    'finetune.fields': 'fields of section model that are other ones than the start has',
    'finetune.adapter': 'what is put beside the matrices of the start: NAME[:field=value,...]; empty = none',
    'data.source': 'the kind of data, of stmoe/data/sources',
    'data.shuffle': 'rows come in another order each epoch',
    'data.eval_split': 'the split that evaluation covers',
    'model.param_dtype': 'of the parameters but those of routers',
    'losses.*': '(weight, reduction over layers) of a router loss; a weight of 0 leaves it out',
    'blocks.*.attention': "whether a block has attention, or a section of the block's own attention",
    'blocks.*.norm': 'whether a norm stands before the layer',
    'blocks.*.around': 'what the block stands in',
    'blocks.*.window': 'tokens that its attention looks back',
    'blocks.*.tied': 'all layers of the letter are one layer',
    'blocks.*.layer': 'the module of stmoe/layers',
}
ENTRY = re.compile(r'( *)([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(\S.*)')


class Explained(typing.NamedTuple):
  """A field of a configuration: its place, its value, what it may be, its default, what is said of it."""
  path: str
  value: typing.Any
  range: str
  default: typing.Any
  text: str


def line(kind: str, name: str) -> str:
  """Returns the first line of the docstring of module `name` of `kind`; '' for a file that is no Python."""
  try:
    return _home(kind, name)[1].partition('\n')[0]
  except errors.UserError:
    return ''


def _home(kind, name):
  """(file, docstring) of module `name` of `kind`, or of a function of `kinds.MODULES`."""
  package = lookup.home(kind, name)
  if kind in kinds.MODULES:
    return declared.functions(package)[name][0], _docstring(kind, name)
  return declared.file(package, name), ast.get_docstring(declared.tree(package, name)) or ''


def configuration(config: typing.Any) -> typing.Iterator[tuple[str, str, list[Explained]]]:
  """Yields (path, what it is, its fields) of every group of a configuration, by path."""
  for group in sorted(sections.groups(config), key=lambda group: group.path):
    told = _texts(group)
    rows = [Explained(group.where(key), group.values.get(key), field.range.text, field.default,
                      told.get(key) or _of_section(group.where(key)))
            for key, field in group.fields.items()
            if field.range is not None and not _is_group(group.values.get(key))
            and not (field.default is declared.OPTIONAL and key not in group.values)
            and not (group.path == '' and key != 'seed')]
    if rows:
      yield group.path or '(the whole)', _title(group), rows


def lines(config: typing.Any, width: int = 100) -> typing.Iterator[str]:
  """Yields lines that explain every field of a configuration: value, what is said of it, range, default."""
  for path, title, rows in configuration(config):
    yield f'{path}  {title}'.rstrip()
    for row in rows:
      yield f'  {row.path.rpartition(".")[2]} = {row.value!r}'
      yield from _told(row.text, row.range, row.default, width)
    yield ''


def of_module(kind: str, name: str, width: int = 100) -> typing.Iterator[str]:
  """Yields lines on module `name` of `kind`: its file, its docstring, and its fields."""
  path, docstring = _home(kind, name)
  yield f'{name}, of kind {kind}: {path}'
  yield ''
  yield docstring
  yield ''
  fields = lookup.options(kind, name) if kind in lookup.FUNCTIONS else lookup.fields(kind, name)
  told = entries(_docstring(kind, name))
  for key, field in fields.items():
    if field.range is not None:
      yield f'  {key}'
      yield from _told(told.get(key, ''), field.range.text, field.default, width)


def _told(text, values, default, width):
  """Indented lines on a field: what is said of it, if anything, and what it may be."""
  unsaid = (declared.REQUIRED, declared.COMPUTED, declared.OPTIONAL)
  usual = '' if default in unsaid else f'; default {default!r}'
  for paragraph in filter(None, (text, f'({values}{usual})')):
    yield from textwrap.wrap(paragraph, width, initial_indent=' ' * 6, subsequent_indent=' ' * 6)


def _title(group):
  """What a group is: the first line of its module or function."""
  if not group.made_of:
    return ''
  kind, name = group.made_of
  return f'{name}: {line(kind, name)}'


def _texts(group):
  """dict field -> what the docstring of the class or function says that has the fields of a group."""
  if not group.made_of:
    return {}
  kind, name = group.made_of
  found = entries(_docstring(kind, name))
  for key, field in lookup.fields(kind, name).items():               # a module that a field chooses
    chosen = getattr(field.range, 'kind', None)
    if isinstance(chosen, str) and isinstance(group.values.get(key), str) and lookup.has(
        chosen, group.values[key]):
      found = entries(_docstring(chosen, group.values[key])) | found
  return found


def entries(docstring: str) -> dict[str, str]:
  """Returns dict name -> text of the entries `name: text` of a docstring, their further lines joined.

  >>> entries('A.\\n\\nArgs:\\n  k, n: how many\\n    there are.\\n  m: other.')
  {'k': 'how many there are', 'n': 'how many there are', 'm': 'other'}
  """
  found: dict[str, str] = {}
  names: list[str] = []
  indent = 0
  for text in docstring.splitlines():
    entry = ENTRY.fullmatch(text)
    if entry:
      names, indent = entry[2].split(', '), len(entry[1])
      found |= {name: entry[3] for name in names}
    elif names and text.strip() and len(text) - len(text.lstrip()) > indent:
      found |= {name: f'{found[name]} {text.strip()}' for name in names}
    else:
      names = []
  return {name: text.removesuffix('.') for name, text in found.items()}


def _docstring(kind, name):
  """The docstring of what has the fields of `name`: the class called like its file, or a function."""
  package = lookup.home(kind, name)
  if kind in kinds.MODULES or kind in lookup.FUNCTIONS:
    function = lookup.FUNCTIONS.get(kind, name)
    module = package if kind in kinds.MODULES else f'{package}.{name}'
    nodes = [node for found, (_, node) in declared.functions(module).items() if found == function]
  else:
    plain = name.replace('_', '').lower()
    nodes = [node for node in declared.tree(package, name).body
             if isinstance(node, ast.ClassDef) and node.name.lower() == plain]
  return next((ast.get_docstring(node) or '' for node in nodes), '')


def _of_section(path):
  """What SECTIONS says of a field."""
  parts = path.split('.')
  stars = [path, '.'.join([*parts[:-1], '*']), '.'.join([parts[0], '*', *parts[2:]])]
  return next((SECTIONS[star] for star in stars if star in SECTIONS), '')


def _is_group(value):
  return hasattr(value, 'keys')


def unknown(group: sections.Group, key: str) -> str:
  """Returns the line on a field that `group` does not have: its value, what is nearest, and who has it."""
  value, names = group.values[key], list(group.fields)
  shown = '' if hasattr(value, 'keys') else (
      f'={value if isinstance(value, str) else value_ranges.shown(value)}')
  return (f'{group.where(key)}{shown}: {group.title or group.path} has no field {key!r}'
          f'{errors.nearest(key, names)}{where_else(group, key)} (it has: {", ".join(names)})')


def where_else(group: sections.Group, key: str) -> str:
  """Returns '; decode.name=beam has it': with which choices a group has a field that it lacks, else ''.

  Of a field that a plugin has without a range: that it lacks one.
  """
  if not group.made_of:
    return ''
  kind, name = group.made_of
  if without := lookup.unranged(kind, name, key):
    return without
  chosen = group.where('source' if kind == 'source' else group.chosen)
  said = lookup.where_else(lookup.having(kind, key), f'{chosen}=')
  return said and f"{said}, or leave {key!r} out of the command, or of a copy of the experiment's file"


@functools.cache
def words() -> dict[str, str]:
  """Returns dict word in lower case -> its paragraph in docs/concepts.md, without markup.

  A paragraph is also that of the words which it explains in italics. Wheels have the page, too.
  """
  own = pathlib.Path(__file__).parent
  page = next((folder / WORDS for folder in (own, own.parent) if (folder / WORDS).is_file()), None)
  found: dict[str, str] = {}
  beside: dict[str, str] = {}
  for paragraph in page.read_text(encoding='utf-8').split('\n\n') if page else ():
    named = re.match(r'\*\*(.+?)\.\*\*', paragraph)
    if named:
      text = _plain(paragraph)
      found |= dict.fromkeys(named[1].lower().split(', '), text)
      beside |= dict.fromkeys(map(str.lower, re.findall(r'(?<!\*)\*([^*]+)\*(?!\*)', paragraph)), text)
  return beside | found


def word(name: str) -> str | None:
  """Returns what the word `name` of docs/concepts.md means, in singular or plural, or None."""
  name = name.lower().replace('_', ' ')
  return next((words()[form] for form in (name, name.removesuffix('s'), f'{name}s') if form in words()), None)


def _plain(paragraph):
  """Markdown without links, emphasis and line ends."""
  return ' '.join(re.sub(r'\*+|`', '', re.sub(r'\s*\(\[[^\]]*\]\([^)]*\)\)', '', paragraph)).split())
