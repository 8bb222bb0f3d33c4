"""A model small enough to train in a test, and a script that trains it in a process of its own.

python tiny_run.py CORPUS WORKDIR [field=value ...] [--kill PLACE]

PLACE is where the process kills itself with SIGKILL: `step:N` after step N, `write:N` in the
middle of writing the checkpoint of step N.
"""

import ast
import os
import pathlib
import signal
import sys

import ml_collections

from stmoe import sections

TEXT = ''.join(f'{i} squared is {i * i}, and {i} cubed is {i ** 3}.\n' for i in range(400))


def config(corpus, **changed):
  """Returns the locked ConfigDict, complete; `changed` as in `plain`."""
  c = plain(corpus, **changed)
  sections.complete(c)
  return c.lock()


def plain(corpus, **changed):
  """Returns what an experiment would say of this model; `changed` sets fields by their dotted names."""
  c = ml_collections.ConfigDict(dict(
      seed=0,
      model=dict(name='lm', vocab_size=264, d_model=16, num_heads=2, head_dim=8, layers=(('dm', 1),)),
      blocks=dict(d=dict(layer='dense', d_ff=32),
                  m=dict(layer='moe', executor='einsum', group_size=None, experts=dict(name='mlp', d_ff=32),
                         router=dict(name='switch', num_experts=4, capacity_factor=(1.0, 2.0), jitter=0.01))),
      losses=dict(balance=(1e-2, 'mean'), z=(1e-3, 'mean')),
      loss=dict(z=1e-4, label_smoothing=0.0),
      data=dict(task='text', files=(str(corpus / 'a.txt'), str(corpus / 'b.txt')), vocab='bytes', extra_ids=0,
                objective='lm', length=32, join=True, pack=True, mixture=(), shuffle=True,
                eval_split='validation', cache_dir=str(corpus / 'cache')),
      optimizer=dict(name='adamw', b1=0.9, b2=0.95, weight_decay=0.1),
      schedule=dict(name='cosine', peak=3e-3, warmup_steps=2),
      train=dict(steps=12, batch_size=8, microbatches=1, clip=1.0, log_every=2, stats_every=6,
                 stop_after_bad=3),
      eval=dict(every=6, batches=2, batch_size=8),
      checkpoint=dict(every=4, keep=2, async_save=True),
      mesh=dict(data=-1, expert=1, model=1),
      profile=dict(start=-1, steps=3)))
  for field, value in changed.items():
    section, _, name = field.rpartition('.')
    holder = c
    for part in section.split('.') if section else ():
      holder = holder[part]
    with holder.ignore_type():
      holder[name] = value
  return c


def write_corpus(folder):
  """Writes two text files into `folder` and returns it."""
  (folder / 'a.txt').write_text(TEXT)
  (folder / 'b.txt').write_text(TEXT.replace('squared', 'times itself'))
  return folder


def kill_at(place):
  """Arranges that this process kills itself at `place`."""
  from stmoe.train import loop
  kind, _, number = place.partition(':')
  if kind == 'step':
    advance = loop.Loop.advance

    def advance_and_die(self):
      advance(self)
      if self.step == int(number):
        self.checkpoints.wait()                                      # what is due by now is on disk
        os.kill(os.getpid(), signal.SIGKILL)
    loop.Loop.advance = advance_and_die
    return
  rename = os.rename

  def rename_or_die(source, target, *args, **kwargs):
    if f'{os.sep}{number}.orbax-checkpoint-tmp{os.sep}' in str(target):
      os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, *args, **kwargs)
  os.rename = rename_or_die


def main(argv):
  """Trains; the arguments are those of the file's docstring."""
  if '--kill' in argv:
    kill_at(argv.pop(argv.index('--kill') + 1))
    argv.remove('--kill')
  corpus, workdir, *fields = argv
  from stmoe.train import loop
  changed = {name: ast.literal_eval(value) for name, _, value in (f.partition('=') for f in fields)}
  return loop.train(config(pathlib.Path(corpus), **changed), workdir, 'tiny')


if __name__ == '__main__':
  code = main(sys.argv[1:])
  print('tensorflow' in sys.modules)
  sys.exit(code)
