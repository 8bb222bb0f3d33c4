"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere (`silence.display`)."""

import sys
import time

from stmoe import silence


def make(total, start, heard=True, shown='loss/ce'):
  """Returns the progress of a run of `total` steps from `start` on: Rich, Plain, Off; Mute if not `heard`.

  shown: the metric that is called the loss on the line.
  """
  if not heard:
    return Mute(total, start)
  return dict(rich=Rich, plain=Plain, off=Off)[silence.display()](total, start, shown)


def columns(values, rate, left, shown):
  """Returns the texts of one line: losses, drops, speed (None = not measured yet), time left."""
  texts = [f'loss {values[shown]:.4f}']
  if 'loss/aux_balance' in values:
    texts.append(f'balance {values["loss/aux_balance"]:.3f}')
  if 'moe/drop_frac' in values:
    texts.append(f'drops {100 * values["moe/drop_frac"]:.1f}%')
  if values['skipped']:
    texts.append(f'skipped {values["skipped"]}')
  if rate is not None:
    texts.append(f'{rate:,.0f} tokens/s')
  return [*texts, f'{clock(left)} left']


def clock(seconds):
  """Returns '1:02:03' or '2:03'."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class Off:
  """Says only what must be said, on stderr."""

  def __init__(self, total, start, shown='loss/ce'):
    self._total, self._start, self._shown = total, start, shown
    self._began = None

  def begin(self):
    """Starts the clock of the estimate: called after the first step, which compiles."""
    self._began = time.monotonic()

  def left(self, step):
    """Returns the estimated seconds that steps after `step` take, evaluations included."""
    timed_steps = step - self._start - 1
    return (time.monotonic() - self._began) / timed_steps * (self._total - step) if timed_steps > 0 else 0.0

  def show(self, step, values, rate):
    """Shows one line of metrics."""

  def busy(self, text):
    """Shows what is done besides training."""

  def say(self, text):
    """Prints a line that stays."""
    print(text, file=sys.stderr, flush=True)

  def close(self):
    """Ends the display."""


class Mute(Off):
  """Says nothing: another process of the job does."""

  def say(self, text):
    pass


class Plain(Off):
  """One line per logged step on stderr, and of other work that takes long: for files and batch systems."""

  def __init__(self, total, start, shown='loss/ce'):
    super().__init__(total, start, shown)
    self._silence = silence.Silence()

  def busy(self, text):
    if self._silence.due():
      super().say(text)

  def say(self, text):
    self._silence.heard()
    super().say(text)

  def show(self, step, values, rate):
    parts = [f'step {step:,}/{self._total:,}', *columns(values, rate, self.left(step), self._shown)]
    self.say('  '.join(parts))


class Rich(Off):
  """A bar that stays on its line, with the newest numbers beside it."""

  def __init__(self, total, start, shown='loss/ce'):
    super().__init__(total, start, shown)
    from rich import console
    from rich import progress
    self._bar = progress.Progress(progress.SpinnerColumn(), progress.BarColumn(bar_width=24),
                                  progress.MofNCompleteColumn(), progress.TextColumn('{task.description}'),
                                  console=console.Console(stderr=True))
    self._task = self._bar.add_task('starting', total=total, completed=start)
    self._bar.start()

  def show(self, step, values, rate):
    text = '  '.join(columns(values, rate, self.left(step), self._shown))
    self._bar.update(self._task, completed=step, description=text)

  def busy(self, text):
    self._bar.update(self._task, description=text)

  def say(self, text):
    self._bar.console.print(text, markup=False, highlight=False)

  def close(self):
    self._bar.stop()
