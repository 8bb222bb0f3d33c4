"""What the kit has measured: a record for each job in results.json of a directory, saved whole or not at all.

  machine: dict(device, ...) of the machine, {} before anything ran there.
  records: dict job -> dict(state, seconds, at, versions, rows or error).
    state: 'done'; 'failed', with the `error` in one line; 'stopped', when time was over.
    seconds: that the job took, once its programs were compiled.

A record is never lost: jobs that are done are not done again, and the time that was not enough for a job says
whether it fits the next time.
"""

import pathlib

from stmoe import errors
from stmoe import files

FILE = 'results.json'
STATES = ('done', 'failed', 'stopped')
LONGEST = 400                            # characters of an error


def out_of_memory(rows):
  """Returns the first `error` of the rows that is one of the GPU's memory, '' without one."""
  return next((row['error'] for row in rows if errors.of_memory(row.get('error', ''))), '')


class Measured:
  """The records in `folder`, which is made with the first of them."""

  def __init__(self, folder):
    self.path = pathlib.Path(folder) / FILE
    content = files.read_json(self.path) if self.path.exists() else dict(machine={}, records={})
    self.machine, self.records = content.get('machine'), content.get('records')
    known = isinstance(self.machine, dict) and isinstance(self.records, dict) and all(
        isinstance(record, dict) and record.get('state') in STATES for record in self.records.values())
    if not known:
      raise errors.Damaged(self.path, 'is no file of results of this kit')

  def on(self, machine):
    """Notes the machine, dict; raises UserError if the records are of another kind of device."""
    before, here = self.machine.get('device'), machine['device']
    if before not in (None, here):
      raise errors.UserError(f'{self.path} has results of {before}, this is {here}; nearest: '
                             f'--out {self.path.parent}-{here.lower().replace(" ", "-")}')
    self.machine = machine

  def add(self, name, state, seconds, at, rows=(), error=''):
    """Saves the record of the job called `name`; of one that is not done, the rows stay that it gave."""
    record = dict(state=state, seconds=round(seconds, 1), at=at, versions=self.machine.get('versions', {}))
    record |= dict(error=' '.join(error.split())[:LONGEST]) if error else {}
    self.records[name] = record | dict(rows=list(rows))
    self.path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(self.path, files.plain(dict(machine=self.machine, records=self.records)), indent=1)

  def state(self, name):
    """Returns the state of the job called `name`, 'missing' without a record."""
    return self.records.get(name, {}).get('state', 'missing')

  def expected(self, job):
    """Returns the seconds that `job` may take: a guess, or twice of what was not enough if that is more.

    What failed has shown nothing: it may have ended early, or hung.
    """
    stopped = self.state(job.name) == 'stopped'
    return max(job.seconds, 2 * self.records[job.name]['seconds']) if stopped else job.seconds

  def missing(self, all_jobs):
    """Returns the list of jobs that are not done, in their order; those that failed before come last."""
    left = [job for job in all_jobs if self.state(job.name) != 'done']
    return sorted(left, key=lambda job: self.state(job.name) == 'failed')
