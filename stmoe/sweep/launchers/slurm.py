"""A SLURM array (submitit), `jobs` of its tasks at a time; a preempted run saves, queues again and goes on.

WORKDIR/slurm/submitted.json keeps what was submitted. So the same command watches the array again, and
submits only what is neither done nor in the queue.
"""

import pathlib
import shutil
import subprocess
import time

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.hosts import signals
from stmoe.runs import owner
from stmoe.sweep import live as progress
from stmoe.sweep import plan
from stmoe.sweep import work

TIMEOUTS = 1000                          # how often a run may reach its time limit and go on in another job


def launch(runs, board, *, partition: ranges.Text = '', time: ranges.Count = 60, jobs: ranges.Count = 64,
           cpus: ranges.Natural = 0, gpus: ranges.Natural = 0, memory: ranges.Natural = 0,
           account: ranges.Text = '', qos: ranges.Text = '', constraint: ranges.Text = '',
           grace: ranges.Natural = 120, poll: ranges.Positive = 5.0):
  """Returns 0 when no run is in the queue any more, 130 after Ctrl-C, which leaves the jobs there.

  Args:
    time:   minutes of a job; a longer run continues in another job.
    jobs:   of the array at a time.
    memory: GB of a job. 0 and '' here and above: the cluster's own values.
    grace:  seconds before the end in which a run saves.
    poll:   seconds between two looks at the queue.
  """
  if not shutil.which('sbatch'):
    raise errors.UserError('--launcher slurm: this machine has no sbatch; nearest: local, print')
  settings = dict(partition=partition, cpus_per_task=cpus, gpus_per_node=gpus, mem=memory and f'{memory}GB',
                  account=account, qos=qos, constraint=constraint)
  folder = (runs[0].workdir.parent / 'slurm').resolve()
  in_queue = queue()
  if in_queue is None:
    raise errors.UserError('--launcher slurm: squeue does not answer; nearest: local, print')
  folder.mkdir(parents=True, exist_ok=True)
  with owner.hold(folder):               # two processes at once would submit the same runs
    jobs_of = stored(folder)
    fresh = [run for run in runs if jobs_of.get(run.id) not in in_queue]
    jobs_of |= submit(fresh, folder, time=time, array_parallelism=jobs, signal_delay_s=grace,
                      **{name: value for name, value in settings.items() if value})
    files.write_json(folder / 'submitted.json', jobs_of)
  board.say(f'{len(fresh)} run(s) submitted, {len(runs) - len(fresh)} in the queue already')
  return watch(list(runs), jobs_of, board, poll)


def stored(folder):
  """Returns dict run id -> job id of what was submitted before."""
  file = pathlib.Path(folder) / 'submitted.json'
  submitted = files.read_json(file) if file.exists() else {}
  if not all(isinstance(number, str) for number in submitted.values()):
    raise errors.Damaged(file, 'has not the numbers of jobs')
  return submitted


def submit(runs, folder, **parameters):
  """Returns dict run id -> job id after submitting `runs` as one array; UserError if SLURM refuses."""
  import submitit
  from submitit.core import utils
  if not runs:
    return {}
  executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=TIMEOUTS)
  executor.update_parameters(job_name='stmoe', **parameters)
  try:
    with executor.batch():               # together they are one array
      submitted = [executor.submit(work.Job(run)) for run in runs]
  except utils.FailedJobError as error:
    raise errors.UserError(f'--launcher slurm: {error}') from None
  return {run.id: job.job_id for run, job in zip(runs, submitted)}


def queue():
  """Returns dict job id -> state of this user's jobs in the queue, or None if SLURM does not answer."""
  words = ['squeue', '--me', '--noheader', '--array', '--format=%i %T']
  reply = subprocess.run(words, capture_output=True, text=True, check=False)
  return None if reply.returncode else dict(line.split() for line in filter(None, reply.stdout.splitlines()))


def watch(runs, jobs_of, board, poll):
  """Keeps `board` up to date until no run is in the queue; returns an exit code."""
  missing = dict.fromkeys((run.id for run in runs), 0)
  with signals.Signals() as stop:
    while runs and not stop.code:
      in_queue = queue()
      for run in list(runs if in_queue is not None else ()):
        state = in_queue.get(jobs_of[run.id])
        missing[run.id] = 0 if state else missing[run.id] + 1
        # A job that comes back is not in the queue for a moment; its files may be late on a network.
        if not state and (plan.is_done(run) or missing[run.id] > 2):
          board.set(run, progress.DONE if plan.is_done(run) else progress.FAILED)
          runs.remove(run)
        elif state:
          board.set(run, progress.WAITING if state == 'PENDING' else progress.RUNNING)
      board.tick()
      time.sleep(poll if runs else 0)
  if stop.code:
    ids = sorted({jobs_of[run.id].partition('_')[0] for run in runs})
    board.say(f'{len(runs)} run(s) stay in the queue; scancel {" ".join(ids)} removes them')
  return stop.code
