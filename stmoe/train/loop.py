"""The training loop: data, steps, metrics, evaluation, checkpoints, stopping and going on.

Everything a run can get wrong is checked first, then the newest checkpoint is looked for, then
training begins. All that happens between two steps is a function of the step's number. So a
run that was killed and continued writes what an undisturbed run writes.
"""

import contextlib
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import experiment
from stmoe import router_state
from stmoe import silence
from stmoe import targets
from stmoe.analysis import flops
from stmoe.checkpoints import best as bests
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.data.text import cache
from stmoe.hosts import distributed
from stmoe.hosts import job
from stmoe.hosts import signals
from stmoe.hosts import speed
from stmoe.runs import by_step
from stmoe.runs import directory as rundir
from stmoe.runs import log
from stmoe.runs import metrics_file
from stmoe.runs import plugged
from stmoe.runs import writers
from stmoe.train import beside
from stmoe.train import blame
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import progress
from stmoe.train import router_losses as losses
from stmoe.train import state as states
from stmoe.train import step as steps
from stmoe.train import taskscore

AHEAD = 2                              # steps handed to the device before the loop waits for one


def train(cfg, workdir, name='', devices=None):
  """Trains `cfg` in `workdir`, or continues there; returns the exit code.

  0 finished (at once if the run was already), 85 after SIGTERM, 130 after Ctrl-C; both signals save first.
  In a job of several processes all call this, and all return the same code.

  Args:
    cfg:     ConfigDict of an experiment.
    workdir: run directory, see `rundir`.
    name:    of the experiment, for the records.
    devices: None = all.
  """
  silence.display()                      # a mistake in it is found before all else
  check.counts(cfg)
  check.trains(cfg)
  if job.first(lambda: rundir.finished(workdir, cfg)):
    return 0
  job.same('configuration', experiment.run_id(cfg))
  keep_compilations()
  cost = flops_per_step(records.read(workdir).located(cfg))
  with contextlib.ExitStack() as stack:
    mesh = stack.enter_context(states.on_mesh(cfg.mesh, devices))
    check.batches(cfg)
    writers.check(cfg)
    return Loop(cfg, pathlib.Path(workdir), name, mesh, cost, stack).run()


def flops_per_step(cfg):
  """Returns the active FLOPs of a training step."""
  return flops.active_per_token(cfg)['train'] * flops.lengths(cfg)['decoder'] * cfg.train.batch_size


def keep_compilations():
  """Lets JAX keep compiled programs in the cache folder, unless JAX was already told where.

  XLA cuts a program for CPUs into pieces for the cores that it finds, and JAX (0.10.2) takes a kept program
  for any number of cores. So each number has a folder of its own.
  """
  if jax.config.jax_compilation_cache_dir is None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    jax.config.update('jax_compilation_cache_dir', str(cache.folder() / 'compiled' / f'cores_{cores}'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


class Loop:
  """A run in its directory; `stack` closes what the run opens."""

  def __init__(self, cfg, path, name, mesh, flops_per_step, stack):
    self.cfg, self.path, self.mesh, self.flops_per_step = cfg, path, mesh, flops_per_step
    reported = self._plan()
    self._agree(stack)
    self._open(stack)
    self._restore(stack)
    self._introduce(name, reported)

  def _plan(self):
    """Lays out model, step and data, and checks them. Returns dict layer -> Aux of shapes.

    Nothing is changed: a mistake leaves no directory.
    """
    cfg = self.cfg
    self.plan = states.blueprint(records.read(self.path).located(cfg), self.mesh)
    self.do_step = steps.Watched(steps.make(cfg, self.plan), self.plan)
    self.sums = evaluate.make(self.plan, cfg.eval.draws)
    reported = check.forward(cfg, self.plan)
    check.needed(cfg, self.plan)
    self.source = job.in_turn(lambda: pipeline.source(cfg, self.path))         # for all there is to come
    self.facts = self.source.info()
    check.vocabulary(cfg, self.plan, self.facts['vocab'])
    check.answers(self.plan, self.facts)
    self.complete = beside.opened(self.plan, self.facts['vocab'])
    self.scorer = taskscore.Scorer(cfg, self.plan, self.source)
    measures = evaluate.measured(cfg, self.plan, self.source)
    self.best = bests.Best(cfg, self.path, self.scorer.names(), measures)
    return reported

  def _agree(self, stack):
    """Makes sure that all processes of a job read the same data and see the same run directory, now owned."""
    cfg, path = self.cfg, self.path
    rows = distributed.shard(self.mesh, cfg.train.batch_size)
    self.data = pipeline.train_iterator(cfg, *rows, self.source)
    stack.callback(self.data.close)
    job.same('data set', self.data.get_state()['data'])
    job.first(lambda: str(stack.enter_context(rundir.own(path))))    # only now: a mistake leaves no directory
    self.planned = job.first(lambda: rundir.planned(path))           # steps, before this command
    job.first(lambda: str(rundir.claim(path, cfg)))
    job.together(lambda: rundir.shared(path))
    job.first(lambda: records.write(path, cfg, self.source, check.files(self.plan)))
    stop = stack.enter_context(signals.Signals(twice=0.0 if job.size() == 1 else 0.5))
    self.ballot = distributed.Ballot(self.mesh, stop, AHEAD)

  def _open(self, stack):
    """Opens the log and the checkpoints of the run."""
    cfg, path = self.cfg.checkpoint, self.path
    self.checkpoints = checkpoint.Checkpoints(path / 'checkpoints', cfg.every, cfg.keep, cfg.async_save)
    stack.callback(self.checkpoints.close)
    self.meta = dict(config=rundir.identity_of(path), vocab=self.facts['vocab'].digest, **self.complete.meta)
    self.log = log.Log(path) if job.leads() else log.Silence()
    stack.callback(self.log.close)
    for line in self.source.notes:
      self.log(line)

  def _restore(self, stack):
    """Takes up the run at its newest checkpoint, or begins it, and opens what grows with its steps."""
    self.step, seconds, flops_before, self.unfinished = self._begin()
    # Not 0 where a cheaper run was upcycled.
    self.flops_of_start = flops_before - self.step * self.flops_per_step
    shown = targets.first(self.plan.target.measures, 'loss/')
    self.log.show = self.show = progress.make(self.cfg.train.steps, self.step, job.leads(), shown)
    stack.callback(self.show.close)
    self._open_metrics(stack)
    self.final = {key: value for line in self.metrics.lines for key, value in line.items()}
    self.clock, self.speed, self.running = Clock(seconds), speed.Speed(self.mesh), []
    self.batch, self.blamed = None, False
    self.profile = Profile(self.cfg.profile, self.path / 'profile', job.leads())
    stack.callback(self.profile.stop)

  def _open_metrics(self, stack):
    """Opens what gets the run's numbers; what stands there of later steps is taken back."""
    self.metrics = self.writers = log.Silence()
    if job.leads():
      self.metrics = metrics_file.Metrics(self.path, self.step, self.log)
      by_step.drop_later(self.path, self.step)
      self.writers = writers.Writers(self.path, self.step, self.metrics.lines, self.cfg, self.log)
    stack.callback(self.writers.close)

  def _begin(self):
    """Restores the newest checkpoint, if there is one.

    Returns (step, seconds, FLOPs, the line of metrics as far as it was known when saved, or None).
    """
    same = lambda meta: rundir.check_same(meta, self.meta)
    restored = self.checkpoints.restore(self.plan.shapes, same, self.log)
    if restored is None:
      self.state = states.init(self.cfg, self.plan)
      return 0, 0.0, 0.0, None
    step, self.state, position, meta = restored
    self.data.set_state(position)
    self.log(f'continuing from the checkpoint of step {step:,}' if step else
             'beginning with the parameters that the run was made with')
    if name := checksum.not_finite(self.state):
      self.log(f'note: the checkpoint of step {step:,} holds numbers that are not finite ({name}), as an '
               'older stmoe could save them; no step from here on can be taken; start from an earlier one')
    self._compare_rates(step, meta.get('steps', self.planned))
    return step, meta['seconds'], meta.get('flops', step * self.flops_per_step), meta.get('line')

  def _compare_rates(self, step, before):
    """Says so if a train.steps other than `before` (0 = not known) moves the schedule."""
    before, after = before or self.cfg.train.steps, self.cfg.train.steps
    rates = [float(steps.schedule(self.cfg, total)(jnp.int32(step))) for total in (before, after)]
    if abs(rates[1] - rates[0]) > 1e-6 * abs(rates[0]):
      self.log(f'note: train.steps was {before:,} and is {after:,}, which moves the schedule: the learning '
               f'rate of the next step goes from {rates[0]:.3g} to {rates[1]:.3g}')

  def _introduce(self, name, aux):
    parameters = sum(x.size for x in jax.tree.leaves(self.plan.shapes['params']))
    corpus = {key: value for key, value in self.facts.items() if key != 'vocab'}
    if not job.leads():
      return
    for line in plugged.changed(self.path, self.cfg):                # before env.json is that of this process
      self.log(line)
    rundir.record_environment(self.path, name, self.mesh, parameters, corpus)
    self.log(f'{name or self.path}: {parameters:,} parameters, {self.cfg.train.steps:,} steps on '
             f'{self.mesh.devices.size} {self.mesh.devices.flat[0].platform} device(s), into {self.path}')
    weighted = any(coefficient for coefficient, _ in self.cfg.losses.values())
    if losses.reported(aux) and not weighted and not jax.tree.leaves(self.plan.shapes['router_state']):
      self.log('note: no router loss has a coefficient; nothing keeps the experts in balance')
    if unweighed := losses.unweighed(aux, self.cfg.losses):
      self.log(f'note: routers report losses that have no coefficient: {", ".join(unweighed)}; nearest: '
               f'--config.losses.{unweighed[0]}=0.01, of its mean over layers, or =0 to leave it out')

  def run(self):
    """Trains to the last step; returns the exit code."""
    if self.unfinished is not None and job.first(lambda: self.final.get('step', 0) < self.step):
      self._conclude(self.unfinished)    # a kill came between saving this step and what follows it
    while self.step < self.cfg.train.steps and not self.ballot.code():
      self.advance()
    if code := self.ballot.last():
      self.save()
      self.checkpoints.wait()
      self.log(f'stopped after step {self.step:,}; the same command continues')
      return code
    if bad := int(self.state['counts']['bad']):                      # an earlier version saved such a state
      self._refuse(bad)
    self.checkpoints.wait()
    if job.leads():
      self.writers.finish(self.final)
      rundir.finish(self.path, self.final)
      self.log(f'finished: {rundir.summary(self.final)}')
    return 0

  def advance(self):
    """Does one step and what is due after it; the first of this process compiles and starts the clocks."""
    if self.clock.started():
      self._after(self._step())
      return
    self.show.say('compiling (the first step can take a minute)')
    began = time.monotonic()
    report = self._step()
    jax.block_until_ready(self.state)
    self.log(f'first step took {time.monotonic() - began:.1f} s')
    self.show.begin()
    self.clock.start()
    self.speed.begin(self._totals(jax.device_get(self.state['counts'])))       # only steps that are timed
    self._after(report)

  def _step(self):
    """Does one step; returns its report."""
    self.profile.at(self.step)
    self.batch = self.complete(check.place(next(self.data), self.mesh))
    self.step += 1
    self.state, report = self.do_step(self.state, self.batch, self._told())
    self.running.append(report['loss/total'])
    if len(self.running) > AHEAD:
      self.running.pop(0).block_until_ready()
    self.ballot.cast()
    return report

  def _after(self, report):
    """Does what is due after a step; the step is saved before anything that may fail."""
    cfg, last, line = self.cfg, self.step == self.cfg.train.steps, {}
    if self._told():
      line = metrics_file.plain(self._report(report))
    if report['load'] and (last or self.step % cfg.train.stats_every == 0):
      load, routers = distributed.fetch((report['load'], self.state['router_state']))
      if job.leads():
        model = self.plan.model(self.state['params'], routers)
        by_step.write_router_stats(self.path, self.step, load, router_state.vectors(model))
        self.writers.loads(self.step, load)
    if last or self.checkpoints.due(self.step):
      self.save(line)
    self._conclude(line)

  def _told(self):
    """Whether metrics.jsonl gets a line of training of this step."""
    return self.step == self.cfg.train.steps or self.step % self.cfg.train.log_every == 0

  def _conclude(self, line):
    """Evaluates, where that is due, and writes the step's line of metrics, begun in `line`."""
    if self.step == self.cfg.train.steps or self.step % self.cfg.eval.every == 0:
      line = (line or self._totals(jax.device_get(self.state['counts']))) | self._evaluate()
    if self.best.improves(self.step, line):
      with self.clock.paused():
        self.best.save(self.step, line, self.state, self.data.get_state(), self.meta)
        self.log(self.best.describe())
    if line:
      written = self.metrics.write(self.step, line)
      self.writers.write(self.step, written)
      self.final |= written

  def _report(self, report):
    """Returns the metrics line of this step, from a single transfer, and shows it."""
    scalars = {name: value for name, value in report.items() if name != 'load'}
    values, counts = jax.device_get((scalars, self.state['counts']))
    layers = values.pop('layers')
    for metric in sorted({metric for layer in layers.values() for metric in layer}):
      values[f'moe/{metric}'] = np.mean([layer[metric] for layer in layers.values() if metric in layer])
    values |= {f'moe/{name}/{metric}': v for name, layer in layers.items() for metric, v in layer.items()}
    totals = self._totals(counts)
    values |= totals | dict(skipped=int(values['skipped']), time=self.speed.told(totals))
    self.show.show(self.step, values, values['time'].get('tokens_per_s'))
    if counts['bad']:
      self._refuse(int(counts['bad']))
    return values

  def _totals(self, counts):
    """Returns what every line counts: target tokens, active FLOPs and seconds of training so far."""
    low, high = counts['tokens'].tolist()
    return dict(tokens=(high << 32) + low, flops=self._flops(), time=dict(seconds=self.clock.seconds()))

  def _flops(self):
    return float(self.flops_of_start + self.step * self.flops_per_step)

  def _refuse(self, bad):
    """Reports `bad` non-finite steps in a row; ends the run when they are too many, or the last steps.

    The first report says which routers are to blame.
    """
    self.log(f'step {self.step:,}: loss or gradient not finite, {bad} steps in a row skipped')
    if not self.blamed:
      self.blamed = True
      for line in blame.routers(self.plan, self.state, self.batch, self.cfg.train.microbatches):
        self.log(line)
    if bad >= self.cfg.train.stop_after_bad or self.step == self.cfg.train.steps:
      self.checkpoints.wait()
      good = ', '.join(map(str, self.checkpoints.steps()))
      raise errors.UserError(f'the last {bad} steps had a loss or gradient that is not finite (train.'
                             f'stop_after_bad={self.cfg.train.stop_after_bad}); stopped at step {self.step}; '
                             f'checkpoints from before these steps: {good or "none"}; try a smaller learning '
                             'rate')

  def _evaluate(self):
    """Returns the 'eval/...' metrics of the current state."""
    jax.block_until_ready(self.state)
    with self.clock.paused():
      values = evaluate.run(self.cfg, self.plan, self.sums, self.state, self.facts,
                            lambda done, number: self.show.busy(f'evaluating {done}/{number}'), self.source,
                            self.complete, self._keep)
      if scores := self.scorer.run(
          self.state, lambda done, number: self.show.busy(f'scoring the tasks {done}/{number}')):
        if job.leads():
          taskscore.write(self.path, taskscore.record(self.scorer, self.step, scores))
        values |= scores
    self.log(f'step {self.step:,}: {evaluate.describe(self.plan.target, values)}')
    if scores:
      self.log(taskscore.describe(scores))
    return values

  def _keep(self, shown):
    """Writes what figures show of this evaluation, dict name -> array."""
    if job.leads():
      by_step.write_shown(self.path, self.step, shown)

  def save(self, line=()):
    """Saves this step, unless the steps just before it were refused.

    line: what the step's line of metrics holds until now, if the line is not written yet.
    """
    if bad := int(self.state['counts']['bad']):
      self._refuse(bad)
      return
    with self.clock.paused():
      self.checkpoints.save(self.step, self.state, self.data.get_state(),
                            self.meta | {'seconds': self.clock.seconds(), 'flops': self._flops(),
                                         'steps': self.cfg.train.steps, 'line': dict(line)})


class Clock:
  """Seconds of training: without compiling, evaluating and saving."""

  def __init__(self, seconds):
    self._seconds, self._since = seconds, None

  def start(self):
    """Starts counting."""
    self._since = time.monotonic()

  def started(self):
    """Returns whether the clock is counting."""
    return self._since is not None

  def seconds(self):
    """Returns the seconds until now, earlier processes of the run included."""
    return self._seconds + (time.monotonic() - self._since if self._since else 0.0)

  @contextlib.contextmanager
  def paused(self):
    """Context that is not counted."""
    running = self._since is not None
    self._seconds, self._since = self.seconds(), None
    yield
    if running:
      self.start()


class Profile:
  """A profile of a few steps for TensorBoard or Perfetto in `path`; see section `profile` of a config."""

  def __init__(self, fields, path, wanted=True):
    self._start, self._end = fields.start if wanted else -1, fields.start + fields.steps
    self._path, self._running = path, False

  def at(self, step):
    """Begins before step `start` and ends `steps` steps later."""
    if self._start <= step < self._end and self._start >= 0 and not self._running:
      jax.profiler.start_trace(str(self._path))
      self._running = True
    elif step >= self._end:
      self.stop()

  def stop(self):
    """Writes what was recorded."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
