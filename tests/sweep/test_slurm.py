"""The SLURM launcher: its queue, its array, and the way of a preempted run back into the queue.

The jobs themselves run here under submitit's local executor, which delivers the preemption signal (SIGUSR2)
and starts a job again like SLURM does. `test_a_real_cluster` submits to the SLURM of this machine where there
is one (slurmctld and slurmd with munge on one node are enough), and is skipped elsewhere.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import submitit

from stmoe import errors
from stmoe.sweep import live as progress
from stmoe.sweep import plan
from stmoe.sweep import work
from stmoe.sweep.launchers import slurm


class Cluster:
  """Answers `queue` from a list of states of every job, one state for each time it is asked."""

  def __init__(self, monkeypatch, found):
    self.found, self.submitted, self.states = found, [], {}
    monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
    monkeypatch.setattr(slurm, 'submit', self.submit)
    monkeypatch.setattr(slurm, 'queue', self.queue)

  def submit(self, runs, folder, **parameters):
    self.parameters = parameters
    self.submitted.append([run.id for run in runs])
    return {run.id: f'7_{i}' for i, run in enumerate(runs)}

  def queue(self):
    return {job: states.pop(0) for job, states in self.states.items() if states}


def finish(run):
  run.workdir.mkdir(parents=True, exist_ok=True)
  (run.workdir / 'DONE').write_text(json.dumps({'step': run.steps}))


def test_runs_are_watched_until_they_leave_the_queue(sweep, monkeypatch, capsys):
  found = sweep(0, 1, 2)
  cluster = Cluster(monkeypatch, found)
  finish(found.runs[0])
  # Asked once before the submission. Run 1 is preempted and comes back; run 2 is gone without a result.
  cluster.states = {'7_0': [None, 'RUNNING', 'PENDING', 'RUNNING'], '7_1': [None, 'RUNNING']}
  history, board = [], progress.Off(found.runs)
  board.tick = lambda: (history.append(board.status[found.runs[1].id]),
                        len(history) == 3 and finish(found.runs[1]))
  assert slurm.launch(found.runs[1:], board, poll=0.01, partition='gpu', gpus=1, memory=8) == 0
  assert history[:3] == ['running', 'waiting', 'running']
  assert list(board.status.values()) == [progress.DONE, progress.DONE, progress.FAILED]
  assert f'{found.runs[2].id} failed' in capsys.readouterr().err
  assert cluster.parameters == dict(time=60, array_parallelism=64, signal_delay_s=120, partition='gpu',
                                    gpus_per_node=1, mem='8GB')


def test_what_is_in_the_queue_is_not_submitted_again(sweep, monkeypatch):
  found = sweep(0, 1)
  cluster = Cluster(monkeypatch, found)
  folder = found.workdir / 'slurm'
  folder.mkdir(parents=True)
  (folder / 'submitted.json').write_text(json.dumps({found.runs[0].id: '3_0', found.runs[1].id: '3_1'}))
  cluster.states = {'3_1': ['PENDING', 'RUNNING']}
  slurm.launch(list(found.runs), progress.Off(found.runs), poll=0.01)
  assert cluster.submitted == [[found.runs[0].id]]
  assert slurm.stored(folder) == {found.runs[0].id: '7_0', found.runs[1].id: '3_1'}


def test_ctrl_c_leaves_the_jobs_in_the_queue(sweep, monkeypatch, capsys):
  found = sweep(0)
  cluster = Cluster(monkeypatch, found)
  cluster.states = {'7_0': [None] + ['RUNNING'] * 1000}
  board = progress.Off(found.runs)
  board.tick = lambda: signal.raise_signal(signal.SIGINT)
  assert slurm.launch(list(found.runs), board, poll=0.01) == 130
  assert '1 run(s) stay in the queue; scancel 7 removes them' in capsys.readouterr().err


def test_without_slurm_it_is_a_mistake(sweep, monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  with pytest.raises(errors.UserError, match='has no sbatch; nearest: local'):
    slurm.launch(list(sweep(0).runs), progress.Off([]))


def test_the_submitted_script_is_one_array(sweep, monkeypatch, tmp_path):
  """With commands of SLURM that only note what they are given."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, answer in (('sbatch', f'cp "$1" {tmp_path}/script; echo Submitted batch job 42'), ('srun', '')):
    (folder / name).write_text(f'#!/bin/sh\n{answer}\n')
    (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
  found = sweep(0, 1, 2)
  ids = slurm.submit(list(found.runs), tmp_path / 'jobs', partition='gpu', time=30, array_parallelism=2,
                     signal_delay_s=50)
  assert ids == {run.id: f'42_{i}' for i, run in enumerate(found.runs)}
  script = (tmp_path / 'script').read_text()
  for flag in ('--array=0-2%2', '--partition=gpu', '--time=30', '--signal=USR2@50', '--open-mode=append'):
    assert re.search(rf'^#SBATCH {re.escape(flag)}$', script, re.MULTILINE), (flag, script)
  assert 'submitit.core._submit' in script


# What a job does with the fake command in the place of the real one; importable from the job's process.
FAKE_JOB = '''
import os
from stmoe.sweep import work

class FakeJob(work.Job):
  def __call__(self):
    work.STMOE = {fake!r}
    self.run.workdir.mkdir(parents=True, exist_ok=True)
    (self.run.workdir / 'pid').write_text(str(os.getpid()))
    return super().__call__()

  def checkpoint(self):
    from submitit import helpers
    super().checkpoint()
    return helpers.DelayedSubmission(FakeJob(self.run))
'''


@pytest.fixture
def job_class(fake, tmp_path, monkeypatch):
  (tmp_path / 'fake_job.py').write_text(FAKE_JOB.format(fake=fake))
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
  import fake_job
  yield fake_job.FakeJob
  del sys.modules['fake_job']


def test_a_preempted_job_saves_and_comes_back(job_class, sweep, monkeypatch, tmp_path):
  monkeypatch.setenv('FAKE_DELAY', '0.05')
  run, = sweep(0, steps=60).runs
  executor = submitit.LocalExecutor(folder=tmp_path / 'jobs')
  executor.update_parameters(timeout_min=5)
  job = executor.submit(job_class(run))
  while progress.step(run) < 3:
    assert job.state != 'FINISHED', job.stderr()
    time.sleep(0.05)
  os.kill(int((run.workdir / 'pid').read_text()), signal.SIGUSR2)    # what SLURM sends to the job
  assert job.result() == 0 and plan.is_done(run)
  said = (run.workdir / work.LOG).read_text()
  assert said.count('stopped after step') == 1 and len(re.findall('^from step', said, re.MULTILINE)) == 2
  assert len((run.workdir / 'metrics.jsonl').read_text().splitlines()) == 60


def test_sigterm_saves_and_waits_for_the_end(job_class, sweep, monkeypatch):
  """Whether a job that got SIGTERM comes back is not its own to decide: it may have been cancelled."""
  monkeypatch.setenv('FAKE_DELAY', '0.05')
  run, = sweep(0, steps=1000).runs
  code = f'from fake_job import FakeJob; from stmoe.sweep.plan import Run; import pathlib; FakeJob({run!r})()'
  job = subprocess.Popen([sys.executable, '-c', code.replace('PosixPath', 'pathlib.Path')])
  end = threading.Timer(30, job.kill)
  end.start()
  while progress.step(run) < 3:
    time.sleep(0.05)
  job.terminate()
  while not (lines := work.last_lines(run)) or 'stopped after step' not in lines[-1]:
    time.sleep(0.05)
  time.sleep(0.5)
  assert job.poll() is None
  job.kill()
  job.wait()
  end.cancel()


def test_a_failed_job_raises_with_its_last_lines(job_class, sweep):
  run, = sweep(13).runs
  with pytest.raises(RuntimeError, match='seed 13 is not allowed'):
    job_class(run)()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('sbatch') or slurm.queue() is None, reason='no SLURM on this machine')
def test_a_real_cluster(job_class, sweep, monkeypatch):
  monkeypatch.setattr(work, 'Job', job_class)
  monkeypatch.setenv('FAKE_DELAY', '0.2')
  found = sweep(0, 1, 13, steps=60)
  preempted = []

  def tick():
    if not preempted and progress.step(found.runs[0]) > 3:
      job = slurm.stored(found.workdir / 'slurm')[found.runs[0].id]
      preempted.append(subprocess.check_call(['scancel', '--signal=USR2', job]))
  board = progress.Off(found.runs)
  board.tick = tick
  assert slurm.launch(list(found.runs), board, time=30, poll=1.0) == 0
  assert preempted and list(board.status.values()) == [progress.DONE, progress.DONE, progress.FAILED]
  said = (found.runs[0].workdir / work.LOG).read_text()
  assert said.count('stopped after step') == 1 and 'from step 0' in said
