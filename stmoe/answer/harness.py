"""A bridge to lm-evaluation-harness (optional extra `lm_eval`): a run as one of its models.

  import lm_eval
  from stmoe.answer import harness
  model = harness.model(harness.Harness('runs/try'))
  lm_eval.simple_evaluate(model=model, tasks=['arc_easy'])

The three methods need nothing of that package but requests with `args`. Tried with lm-eval 0.4.13: choices,
greedy texts and whole texts of local files.
"""

import jax
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.answer import infer
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.decode import generate
from stmoe.decode import rank
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import opened
from stmoe.train import state as states


class Harness:
  """`loglikelihood`, `loglikelihood_rolling` and `generate_until` of a decoder-only run's newest checkpoint.

  Rows are batched by length, longest first, and padded to a power of two. Every token is routed by itself,
  as in generation, so answers do not depend on batches. alone=False asks for the capacity of evaluation
  instead. `drop_frac` is the share of dropped choices of all log-likelihoods until now; 0.0 unless
  alone=False. `num_cut` is the number of rows until now that lost their beginning, because they had more
  tokens than a row of training.

  Args:
    path:       run directory, or a downloaded folder; batch_size: rows at once.
    length:     most tokens that are generated, where a request has no max_gen_toks.
    alone:      see `rank.details`.
    cfg:        the run's configuration, if not as it was trained.
    step:       of the checkpoint, None = the newest; within: see `opened.restore`.
  """

  def __init__(self, path, batch_size=8, length=64, alone=True, cfg=None, devices=None, step=None,
               within='checkpoints'):
    path = downloaded.resolved(path)
    self.cfg = rundir.opened(path) if cfg is None else cfg
    if not getattr(pipeline.objective(self.cfg), 'whole', False):
      raise errors.UserError(f'lm-evaluation-harness scores texts from left to right, and {path} has '
                             f'{lookup.titled(self.cfg.data)}; it needs lm')
    self._batch_size, self._length, self._devices = batch_size, length, devices
    self._dropped, self._batches, self.num_cut = 0.0, 0, 0
    self._start = self.cfg.model.get('start_id', 0)
    self._starts = self.cfg.model.get('start_prompts', True)
    with states.on_mesh(self.cfg.mesh, devices) as mesh:
      record = records.read(path)
      self._plan = states.blueprint(record.located(self.cfg), mesh)
      self._vocabulary = pipeline.vocabulary(self.cfg, found=record)
      self.step, state, _, _ = opened.restore(self._plan, path, self._vocabulary, lambda line: None, step,
                                              within)
    self._numbers = state['params'], state['router_state']
    self._score = jax.jit(lambda params, routers, batch: rank.details(
        self._plan.model(params, routers), batch, alone=alone))
    self._programs = {}

  @property
  def drop_frac(self):
    """Share of the choices that were dropped, the mean over batches."""
    return self._dropped / max(self._batches, 1)

  def loglikelihood(self, requests):
    """Returns [(log-probability of the text, whether greedy)] of requests, args (context, text).

    Every text is read after start_id. Where prompts are not (`start_prompts`), only a text without context.
    """
    pairs = []
    for request in requests:
      context, text = request.args
      whole = self._encode(context + text)
      num_given = max(min(len(self._encode(context)), len(whole) - bool(text)), 0)  # a text has a token
      start = [] if num_given and not self._starts else [self._start]
      pairs.append(([*start, *whole], num_given + len(start)))
    return self._scores(pairs)

  def loglikelihood_rolling(self, requests):
    """Returns the log-probability of whole texts, args (text,); long texts in windows without overlap."""
    size, windows, owner = self.cfg.data.length, [], []
    for number, request in enumerate(requests):
      ids = self._encode(request.args[0])
      parts = [ids[i:i + size] for i in range(0, len(ids), size)] or [[]]
      windows += [([self._start, *part], 1) for part in parts]
      owner += [number] * len(parts)
    totals = [0.0] * len(requests)
    for number, (value, _) in zip(owner, self._scores(windows)):
      totals[number] += value
    return totals

  def generate_until(self, requests):
    """Returns greedy texts of requests with args (context, dict), cut at the first of `until`.

    A text has at most `max_gen_toks` tokens of its dict.
    """
    first, last = infer.around(self.cfg, self._vocabulary)
    whole = [[*first, *self._encode(request.args[0]), *last] or [self._start] for request in requests]
    self.num_cut += sum(len(ids) > self.cfg.data.length for ids in whole)
    prompts = [ids[-self.cfg.data.length:] for ids in whole]
    most = [request.args[1].get('max_gen_toks', self._length) for request in requests]
    with states.on_mesh(self.cfg.mesh, self._devices) as mesh:
      generated, key = self._program(max(most, default=self._length)), jax.random.key(0)
      run = lambda batch: dict(ids=generated(*self._numbers, check.place(batch, mesh), key))
      texts = self._in_batches(prompts, lambda rows, width: infer.prompt_batch(self.cfg, rows, width), run)
    return [_until(generate.text(self.cfg, self._vocabulary, row['ids'][:length]),
                   request.args[1].get('until', ())) for row, length, request in zip(texts, most, requests)]

  def _program(self, length):
    """The jitted greedy decoding of at most `length` tokens."""
    if length not in self._programs:
      decode = generate.ending(dict(name='greedy'), self.cfg, self._vocabulary)
      self._programs[length] = generate.make(self._plan, decode, length)
    return self._programs[length]

  def _encode(self, text):
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise errors.UserError(f'a request holds half a surrogate pair at character {error.start + 1}: it is '
                             f'no text: {text[:60]!r}') from error
    return self._vocabulary.encode([text])[0].tolist()

  def _scores(self, pairs):
    """[(score, greedy)] of (ids, how many are given, the first at least).

    Texts that are too long lose their beginning, but not start_id.
    """
    pairs = [self._cut(*pair) for pair in pairs]
    with states.on_mesh(self.cfg.mesh, self._devices) as mesh:
      def run(batch):
        scores = dict(self._score(*self._numbers, check.place(batch, mesh)))
        self._dropped, self._batches = self._dropped + float(scores.pop('drop_frac')), self._batches + 1
        return scores
      rows = self._in_batches(pairs, _target_batch, run, size=lambda pair: len(pair[0]) - 1)
    return [(float(row['score']), bool(row['greedy'])) for row in rows]

  def _cut(self, ids, num_given):
    """(ids, how many are given) of no more than data.length ids behind the first."""
    over = max(len(ids) - 1 - self.cfg.data.length, 0)
    self.num_cut += over > 0
    kept = ids[over:]
    return [self._start, *kept[1:]] if over and self._starts else kept, max(num_given - over, 1)

  def _in_batches(self, items, make, run, size=len):
    """What `run` gives for each item, in order; batches of like lengths, the last filled up with its last."""
    order, results = sorted(range(len(items)), key=lambda i: -size(items[i])), [None] * len(items)
    for begin in range(0, len(order), self._batch_size):
      mine = order[begin:begin + self._batch_size]
      rows = [items[i] for i in mine] + [items[mine[-1]]] * (self._batch_size - len(mine))
      outputs = jax.tree.map(np.asarray, run(make(rows, infer.width(size(rows[0])))))
      for row, i in enumerate(mine):
        results[i] = {name: a[row] for name, a in outputs.items()}
    return results


def _target_batch(pairs, width):
  """The batch of (ids, how many are given): decoder_ arrays i32[B,width], with weights on ids not given.

  The first id is read and not predicted.
  """
  names = ('target_tokens', 'input_tokens', 'loss_weights', 'segment_ids', 'positions')
  batch = {f'decoder_{name}': np.zeros((len(pairs), width), np.int32) for name in names}
  for row, (ids, num_given) in enumerate(pairs):
    n = len(ids) - 1
    batch['decoder_target_tokens'][row, :n] = ids[1:]
    batch['decoder_input_tokens'][row, :n] = ids[:-1]
    batch['decoder_loss_weights'][row, num_given - 1:n] = 1
    batch['decoder_segment_ids'][row, :n] = 1
    batch['decoder_positions'][row, :n] = np.arange(n)
  return batch


def _until(text, stops):
  for stop in [stops] if isinstance(stops, str) else stops or ():
    text = text.split(stop)[0] if stop else text
  return text


def model(bridge):
  """Returns `bridge` as a model of lm-evaluation-harness; raises UserError if that is not installed."""
  try:
    from lm_eval.api import model as api
  except ImportError:
    raise errors.UserError("lm-evaluation-harness is not installed: pip install 'stmoe[lm_eval]'") from None
  methods = ('loglikelihood', 'loglikelihood_rolling', 'generate_until')
  own = {name: (lambda self, requests, disable_tqdm=False, name=name: getattr(bridge, name)(requests))
         for name in methods}
  return type('StmoeModel', (api.LM,), own)()
