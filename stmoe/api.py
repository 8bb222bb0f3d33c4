"""What `import stmoe` offers: layers for models of one's own, and runs that Python trains and asks.

  layer = stmoe.layer('switch', 512, num_experts=8, d_ff=2048, rngs=nnx.Rngs(0))
  y, aux, _ = layer(x, stmoe.Context.of(tokens, key=key, train=True))
  run = stmoe.train('lm/quickstart:method=switch', overrides={'train.steps': 100})
  run = stmoe.open('runs/small')
  stmoe.plugin('my_router.py')

Configurations and plugins are code: name none that you did not read.
"""

import collections.abc
import copy
import functools
import pathlib
import types
import typing
import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import declared
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe import plugins
from stmoe import sections
from stmoe.analysis.routing import choices
from stmoe.analysis.routing import text as routed
from stmoe.answer import interactive
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import hidden
from stmoe.data import batches as pipeline
from stmoe.data.text import pack
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs

plugin = plugins.add
NAMED = ('router', 'experts', 'inner')    # fields of `layer` that name a module themselves
Texts = typing.Union[str, collections.abc.Sequence[str]]
Batch = dict[str, typing.Any]


class Layer(nnx.Module):
  """A layer of this project in a model of one's own: `inner`, with defaults for what it is called with.

  inner: the layer itself, a `core.contract.SubLayer`; its router is `inner.router`, where it has one.
  """

  def __init__(self, inner: typing.Any):
    self.inner = inner

  def __call__(self, x: jax.Array, ctx: contract.Context | None = None,
               carry: contract.Carry | None = None) -> contract.Answer:
    """Returns (y [B,T,D], what the layer reports, carry) for x [B,T,D].

    What it reports is an Aux with losses, load and metrics; None of a dense layer, a dict of Aux of a layer
    with several routers. The loss of a model adds the losses of all its layers, each times a coefficient.

    A router that looks ids up, such as hash, has none of ids beyond its `vocab_size`: y is NaN there in a
    compiled program, which knows no ids when it is made, and a UserError elsewhere.

    Args:
      ctx:   of `Context.of`; None = all tokens are real, and this is evaluation.
      carry: what the layer before returned, for methods that remember across layers; None = the first layer.
    """
    ctx = _fitting(x, ctx)
    beyond = _beyond(self.inner, ctx)
    if carry is None:
      carry = modules.init_carry(self.inner, x)
    y, aux, carry = self.inner(x, ctx, carry)
    return y if beyond is None else jnp.where(beyond[..., None], jnp.nan, y), aux, carry

  def commit(self, aux: contract.Reported) -> None:
    """Moves the router state of the layer by `aux`, after each step of the optimizer, in place.

    Most routers have none. Biases of loss-free balancing, thresholds and counters are such states.
    """
    modules.commit(self.inner, aux)


def _fitting(x, ctx):
  """The Context for x [B,T,D]; None = evaluation without padding. UserError where the two do not fit."""
  wanted = 'wanted: x [B,T,D] and stmoe.Context.of(tokens), tokens [B,T]'
  if ctx is not None and not isinstance(ctx, contract.Context):
    raise errors.UserError(f'ctx is a {checked.told(ctx)}; {wanted}')
  if x.ndim != 3:
    raise errors.UserError(f'x is a {checked.told(x)}; {wanted}')
  ctx = contract.Context.of(x) if ctx is None else ctx
  if ctx.mask.shape != x.shape[:2]:
    raise errors.UserError(f'x is a {checked.told(x)}, the context one of {list(ctx.mask.shape)} tokens; '
                           f'{wanted}')
  if ctx.train and ctx.key is None:
    warnings.warn('train=True without a key: noise, jitter and dropout of the layer are left out; give '
                  'stmoe.Context.of(tokens, train=True, key=KEY), another key a step', stacklevel=4)
  return ctx


def _beyond(inner, ctx):
  """bool[B,T]: real tokens whose ids a router's table has not; None without such a router, or such ids."""
  sizes = [part.num_ids for _, part in modules.offering(inner, 'num_ids')]
  if not sizes:
    return None
  beyond = ctx.mask & ((ctx.ids < 0) | (ctx.ids >= min(sizes)))      # [B, T]
  if isinstance(beyond, jax.core.Tracer):
    return beyond
  if beyond.any():
    ids = ctx.ids[ctx.mask]
    raise errors.UserError(f'ids are from {ids.min()} to {ids.max()}, and the router looks up 0 to '
                           f'{min(sizes) - 1}; wanted: as many ids as the layer has in vocab_size')
  return None


def layer(name: str, d_model: int, *, rngs: nnx.Rngs, **fields) -> Layer:
  """Returns the layer `name`, a router or a layer, of width `d_model`.

  Args:
    name:   of a router, which gets experts, or of a layer (`stmoe list routers`, `stmoe list layers`).
    fields: of the router, its experts and the layer around them: every field goes to the part that has it.
      `router`, `experts` and `inner` may be a name, or a dict of a name and fields.
    rngs:   draws the parameters.
  Raises:
    UserError: a field that no part has, that several have, or with a value out of its range.
  """
  if not isinstance(rngs, nnx.Rngs):
    raise errors.UserError(f'rngs is a {checked.told(rngs)}; wanted: flax.nnx.Rngs(0), of a seed or a key')
  section = _section(name, fields)
  config = ml_collections.ConfigDict(dict(blocks=dict(layer=section)))
  try:
    sections.complete(config)
    sections.check(config)
  except errors.UserError as error:
    said = str(error).removeprefix('blocks.layer: ')
    raise errors.UserError(said.replace('blocks.layer', f'layer {name!r}')) from None
  section = config.blocks.layer.to_dict()
  for of_block in ('attention', 'norm'):
    section.pop(of_block)
  return Layer(lookup.recipe('layer', dict(section, name=section.pop('layer')))(d_model, rngs=rngs))


def _section(name, fields):
  """The section of a block whose layer is `name`, a layer or a router around which `moe` stands."""
  fields = {key: dict(name=value) if key in NAMED and isinstance(value, str) else copy.copy(value)
            for key, value in fields.items()}
  routes = lookup.has('router', name)
  if not lookup.has('layer', name):
    lookup.check('router', name)
  outer: dict[str, typing.Any] = dict(layer=name if lookup.has('layer', name) else 'moe')
  parts = [('layer', outer['layer'], outer)]
  if routes and 'inner' in lookup.fields('layer', outer['layer']) and 'inner' not in fields:
    outer['inner'] = dict(name='moe')
    parts.append(('layer', 'moe', outer['inner']))
  _, layer, holder = parts[-1]
  if 'router' in lookup.fields('layer', layer) and (routes or 'router' in fields):
    holder['router'] = (dict(name=name) if routes else {}) | fields.pop('router', {})
    holder['experts'] = dict(name='mlp') | fields.pop('experts', {})
    parts += [(kind, holder[kind].get('name'), holder[kind]) for kind in ('router', 'experts')]
  for key, value in fields.items():
    _place(name, key, value, parts)
  return outer


def _place(name, key, value, parts):
  """Puts field `key` of layer `name` into that of its parts (kind, name, section) which has it."""
  declared_by = [(lookup.fields(kind, of), f'{kind} {of}', section) for kind, of, section in parts]
  having = [(fields[key], title, section) for fields, title, section in declared_by
            if key in fields and fields[key].range]
  if not having:
    every = sorted({field for fields, _, _ in declared_by for field, one in fields.items() if one.range})
    raise errors.UserError(f'layer {name!r} has no field {key!r}{errors.nearest(key, every)} (it has: '
                           f'{", ".join(every)})')
  if len(having) > 1 and any(field.written is not declared.UNWRITTEN for field, _, _ in having):
    titles = [title for _, title, _ in having]
    raise errors.UserError(f'layer {name!r}: {key!r} is a field of {" and of ".join(titles)}; nearest: '
                           f'{titles[-1].split()[0]}=dict({key}={value!r})')
  for _, _, section in having:
    section[key] = value


class Run:
  """A run directory, or a downloaded checkpoint, that is open: its model, its configuration, its vocabulary.

  path, config, vocabulary, model: see `answer.interactive.opened`. The vocabulary may be None. Another model,
    such as one of wrapped routers, may take the place of `model`: logits, routing and table are then its own.
  step: of the checkpoint; None = the newest.
  """

  def __init__(self, path: str | pathlib.Path, step: int | None = None):
    self.path, self.step = pathlib.Path(path), step
    self.model, self.config, self.vocabulary = interactive.opened(self.path, step)
    self._opened = self.model

  def __repr__(self) -> str:
    return (f'<Run {str(self.path)!r}: {self.config.model.name}, {modules.num_weights(self.model):,} '
            'parameters>')

  @functools.cached_property
  def history(self) -> runs.Run:
    """What training wrote: `history.lines`, `history.series('loss/ce')`, `history.loads`."""
    return runs.read(self.path)

  def logits(self, texts: Texts | np.ndarray | Batch,
             edit: collections.abc.Mapping[str, collections.abc.Callable] | None = None) -> np.ndarray:
    """Returns f32[B,T,V] of a language model: entry [b,t] predicts token t of text b.

    Args:
      texts: a text or several, i32[B,T] ids, or a batch of the data (`batches`), whatever the model.
      edit:  dict name -> function y [B',T',D] -> [B',T',D] of what is to be put in place of an output or a
        state, by the names of `modules.edited`. B' and T' are those of evaluation; the texts come first.
    """
    batches, rows, length = self._read(texts)
    model = modules.edited(self.model, edit) if edit else self.model
    outputs = [np.asarray(_forward(model, batch), np.float32) for batch in batches]
    return np.concatenate(outputs)[:rows, :length]

  def states(self, texts: Texts | np.ndarray | Batch) -> dict[str, np.ndarray]:
    """Returns dict name -> f32[B,T,D], the residual stream after each block: 'decoder_03.hidden'.

    Entry [b,t] is of the token that is read at place t, see `routing`. `logits(edit=)` has the same names.
    """
    batches, rows, length = self._read(texts)
    model = modules.showing(self.model, [name for stack in self.model.stacks() for name in stack.blocks()])
    found: dict[str, list] = {}
    for batch in batches:
      for name, state in hidden.apart(_reported(model, batch))[1].items():
        found.setdefault(name + hidden.END, []).append(np.asarray(state.x, np.float32))
    return {name: np.concatenate(states)[:rows, :length] for name, states in found.items()}

  def routing(self, texts: Texts | np.ndarray | Batch) -> dict[str, dict[str, np.ndarray]]:
    """Returns dict layer -> dict of experts i32[B,T,n] and weights f32[B,T,n], as at evaluation.

    A token's experts come largest weight first, whatever its sign; -1 and weight 0 stand where a token has no
    more. Entry [b,t] is of the token that is read at place t: in a decoder the token before token t.
    """
    batches, rows, length = self._read(texts)
    found: dict[str, list] = {}
    for batch in batches:
      for name, chosen in choices.choices(self.model, batch).items():
        found.setdefault(name, []).extend(row[:length] for row in chosen.experts)
    return {name: _arrays(of_rows[:rows]) for name, of_rows in found.items()}

  def table(self, texts: Texts | np.ndarray | Batch) -> dict[str, np.ndarray]:
    """Returns the choices of `routing` as columns of equal length, a row for every choice of every token.

    row, position, id, token (its text, where there is a vocabulary), layer, choice, expert, weight.
    """
    batches, _, _ = self._read(texts)
    columns: dict[str, list] = {name: [] for name in (
        'row', 'position', 'id', 'token', 'layer', 'choice', 'expert', 'weight')}
    for layer, arrays in self.routing(texts).items():
      read = f'{choices.stack_of(layer)}_input_tokens'
      ids = np.concatenate([np.asarray(batch[read]) for batch in batches])
      b, t, n = np.nonzero(arrays['experts'] >= 0)
      named = routed.texts(self.vocabulary, ids[b, t]) if self.vocabulary else [''] * len(b)
      values = dict(row=b, position=t, id=ids[b, t], token=named, layer=[layer] * len(b), choice=n,
                    expert=arrays['experts'][b, t, n], weight=arrays['weights'][b, t, n])
      for name, value in values.items():
        columns[name].extend(value)
    return {name: np.asarray(values) for name, values in columns.items()}

  def frame(self, texts: Texts | np.ndarray | Batch) -> typing.Any:
    """Returns `table` as a pandas.DataFrame; raises UserError where pandas is not installed."""
    return _pandas().DataFrame(self.table(texts))

  def metrics(self) -> typing.Any:
    """Returns the lines of metrics.jsonl as a pandas.DataFrame; `history.lines` has them without pandas."""
    return _pandas().DataFrame(self.history.lines)

  def generate(self, prompts: Texts | Batch | collections.abc.Sequence[Batch], length: int = 64,
               **decode) -> typing.Any:
    """Returns the text that the model adds to a prompt, or the list of texts that it adds to several.

    Args:
      prompts: one or several, texts or dicts with what routers are given: {'inputs': 'a', 'given/domain': 1}.
      length: most tokens of a text.
      decode: name and fields of a strategy: name='sample', temperature=0.8; greedy where nothing is said.
    """
    if self.model is not self._opened:
      raise errors.UserError('generate writes with the checkpoint, and run.model was replaced since; logits, '
                             'routing and table are those of the model that is there now')
    alone = isinstance(prompts, (str, dict))
    several = [prompts] if alone else list(prompts)
    texts = interactive.generate(self.path, several, dict(name='greedy') | decode, length, self.step)
    return texts[0] if alone else texts

  def batches(self, overrides: collections.abc.Mapping | collections.abc.Sequence[str] = ()
              ) -> typing.Iterator[Batch]:
    """Yields the batches of evaluation, in order; the last is filled up with rows of weight or segment 0.

    Args:
      overrides: as of `train`, for other data: {'data.files': 'new.csv,new.csv'} is every row of the file,
        read with the scales, ids and classes of the run.
    """
    config = copy.deepcopy(self.config).lock()
    experiment.override(config, interactive.texts(overrides), whole=False)
    return iter(pipeline.eval_batches(config, 0, 1, pipeline.source(config, self.path)))

  def _read(self, texts):
    """(batches of evaluation's shape, real rows, tokens of the longest row) of texts or ids.

    A batch stays as it is. Rows are as many and as long as in evaluation, for groups and capacity to be
    those of evaluation.
    """
    if isinstance(texts, dict):
      return [texts], None, None
    if 'length' not in self.config.data:
      raise errors.UserError(f'{self.path} is no decoder of texts; give a batch, such as next(run.batches())')
    rows = self._ids(texts) if hasattr(texts, 'ndim') else self._encoded(texts)
    longest, limit = max(map(len, rows), default=0), self.config.data.length
    if not 0 < longest <= limit:
      raise errors.UserError(f'the longest text has {longest} tokens; the model reads 1 to data.length='
                             f'{limit}')
    return [self._filled(rows[at:at + self.config.eval.batch_size])
            for at in range(0, len(rows), self.config.eval.batch_size)], len(rows), longest

  def _ids(self, ids):
    ids, size = np.atleast_2d(np.asarray(ids)), self.config.model.vocab_size
    found = f' from {ids.min()} to {ids.max()}' if ids.size else ''
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim > 2 or ((ids < 0) | (ids >= size)).any():
      raise errors.UserError(f'ids are {checked.told(ids)}{found}; wanted: i32[B,T] of 0 to {size - 1}')
    return list(ids)

  def _encoded(self, texts):
    texts = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, (list, tuple)) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      raise errors.UserError('a text is no str; ids are given as an array, numpy.array([[1, 2, 3]])')
    if self.vocabulary is None:
      raise errors.UserError(f'{self.path} has no vocabulary; give ids i32[B,T] instead of texts')
    return self.vocabulary.encode(texts)

  def _filled(self, rows):
    filled = pack.empty(dict(decoder=self.config.data.length), self.config.eval.batch_size)
    for row, ids in enumerate(rows):
      pack.fill(filled, row, [dict(decoder=ids)], start=self.config.model.get('start_id', 0))
    return filled


def _arrays(rows):
  """dict of experts i32[B,T,n] and weights f32[B,T,n] of [B][T] lists of (expert, weight)."""
  most = max([len(of_token) for row in rows for of_token in row], default=0) or 1
  experts = np.full((len(rows), len(rows[0]), most), -1, np.int32)
  weights = np.zeros(experts.shape, np.float32)
  for b, row in enumerate(rows):
    for t, of_token in enumerate(row):
      for n, (expert, weight) in enumerate(of_token):
        experts[b, t, n], weights[b, t, n] = expert, weight
  return dict(experts=experts, weights=weights)


@jax.jit
def _forward(model, batch):
  return model(batch)[0]


@jax.jit
def _reported(model, batch):
  return model(batch)[1]


def open(run: str | pathlib.Path, step: int | None = None) -> Run:
  """Returns the Run in directory `run`, or of a downloaded folder, at its newest checkpoint or at `step`."""
  return Run(run, step)


def train(config: str | ml_collections.ConfigDict, workdir: str | pathlib.Path | None = None,
          overrides: collections.abc.Mapping | collections.abc.Sequence[str] = ()) -> Run:
  """Returns the Run that training leaves; what is trained already is only read, what was stopped goes on.

  Args:
    config:    an experiment, 'lm/quickstart:method=switch', the path of a .py file, or a ConfigDict.
    workdir:   run directory; None = a folder of runs/ that is this configuration's own.
    overrides: {'train.steps': 100}, or texts 'train.steps=100'.
  Raises:
    KeyboardInterrupt: training was interrupted; the same call continues.
  """
  texts = interactive.texts(overrides)
  if isinstance(config, (str, pathlib.Path)):
    cfg, name = experiment.load(str(config), texts)
  else:
    cfg, name = experiment.override(copy.deepcopy(config).lock(), texts), 'python'
  workdir = workdir or rundir.default(name, cfg)
  interactive.train_config(cfg, workdir, name)
  return Run(workdir)


def _pandas() -> types.ModuleType:
  """The module pandas; UserError where it is not installed."""
  try:
    import pandas
  except ImportError:
    raise errors.UserError('data frames need pandas: pip install pandas; `table` and `history` give the same '
                           'without it') from None
  return pandas
