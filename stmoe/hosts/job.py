"""A job of several processes: how a process joins it, how all agree on something, and how a process leaves.

Joining comes before any other use of JAX. Agreement goes through the job's coordinator, not through the
devices, so that a process may wait for another process as long as it takes. Without a job everything here is
about the only process there is.
"""

import itertools
import json
import os
import pathlib
import sys

from stmoe import errors
from stmoe import ranges
from stmoe.hosts import supervise

HEARTBEAT = 60                           # seconds of silence after which a process is taken for dead
TOGETHER = 300                           # seconds in which all processes of a job must have started
LEAVE = 10                               # seconds that a failing process gives other processes to fail
ASK: dict = {}                           # how to join where only a Cloud TPU's metadata server knows
LONG = 7 * 24 * 3600 * 1000              # ms; who waits for a dead process is ended by its heartbeat

# What the runtime's errors say when another process does not answer any more.
LOST_WORDS = ('Gloo', 'NCCL', 'UNAVAILABLE', 'oordination service', 'heartbeat', 'closed by peer', 'Barrier')

_turns = itertools.count()
_member = False                          # whether this process was put into a job by `enter`


def add_arguments(parser):
  """Adds the flags of a command that may run as several processes."""
  group = parser.add_argument_group('several hosts (found by itself under SLURM, Open MPI and on Cloud TPU)')
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0, with a free port')
  group.add_argument('--processes', type=ranges.Count, metavar='N',
                     help='how many there are; 1: this one alone, whatever is found')
  group.add_argument('--process', type=ranges.Natural, metavar='I', help='which one this is, from 0')
  group.add_argument('--heartbeat', type=ranges.Count, default=HEARTBEAT, metavar='SECONDS',
                     help=f'silence after which a process counts as dead; default: {HEARTBEAT}')
  group.add_argument('--start-timeout', type=ranges.Count, default=TOGETHER, metavar='SECONDS',
                     help=f'in which all processes must have started; default: {TOGETHER}')


def place(args, environment=os.environ):
  """Returns how to join: arguments of `jax.distributed.initialize`, or None where there is no job.

  Flags come first; all three of them, or `--processes 1`. Imports no JAX.
  """
  flags = dict(coordinator=args.coordinator, processes=args.processes, process=args.process)
  if args.processes == 1 and args.process in (None, 0):
    return None
  missing = [f'--{name}' for name, value in flags.items() if value is None]
  if len(missing) == 3:
    return _found(environment)
  if missing:
    raise errors.UserError(f'{" and ".join(missing)} missing: give --coordinator HOST:PORT, --processes N '
                           'and --process I together, or none of them')
  host, _, port = args.coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.UserError(f'--coordinator {args.coordinator}: write HOST:PORT, for example node0:7777')
  if args.process >= args.processes:
    raise errors.UserError(f'--process {args.process} of --processes {args.processes}: they count from 0 to '
                           f'{args.processes - 1}')
  if args.process == 0:
    _check_free(args.coordinator)
  return dict(coordinator_address=args.coordinator, num_processes=args.processes, process_id=args.process,
              **_all_devices(environment))


def _check_free(address):
  """Raises UserError if the port is taken on this machine, of which the runtime would die without a word."""
  import socket
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', int(address.rpartition(':')[2])))
    except OSError as error:
      raise errors.UserError(f'--coordinator {address}: this machine, of process 0, cannot listen there: '
                             f'{error.strerror}') from error


def _found(env):
  """How to join the job that the environment describes, or None.

  Under SLURM the step (srun) counts. A batch script or an interactive shell inside an allocation of
  many tasks is a single process. One task on a node takes all its devices, several take one each.
  """
  if int(env.get('SLURM_STEP_NUM_TASKS') or 1) > 1 and 'SLURM_PROCID' in env:
    tasks_per_node = env.get('SLURM_STEP_TASKS_PER_NODE', '')
    alone = tasks_per_node == '1' or tasks_per_node.startswith('1(') and ',' not in tasks_per_node
    alone |= env.get('CUDA_VISIBLE_DEVICES', '').isdecimal()           # --gpus-per-task=1: there is no other
    return dict(num_processes=int(env['SLURM_STEP_NUM_TASKS'])) | (_all_devices(env) if alone else {})
  if int(env.get('OMPI_COMM_WORLD_SIZE') or 1) > 1:
    return {}
  if 'JOB_COMPLETION_INDEX' in env and 'KUBERNETES_SERVICE_HOST' in env and _installed('kubernetes'):
    return {}
  if ',' in (env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES') or ''):
    return {}
  chips = _installed('libtpu') and any(pathlib.Path(f'/dev/{name}').exists() for name in ('accel0', 'vfio/0'))
  return ASK if chips and 'TPU_SKIP_MDS_QUERY' not in env else None


def alone(name, environment=os.environ):
  """Raises UserError where the command `name`, which runs as one process, was started as several."""
  if any(int(environment.get(count) or 1) > 1 for count in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')):
    raise errors.UserError(f'stmoe {name} runs as one process, and was started as several; only train and '
                           'eval share the work; nearest: srun --ntasks 1')


def _all_devices(env):
  """What keeps JAX from giving this process the device of its number on the machine, and no other."""
  return {} if 'JAX_LOCAL_DEVICE_IDS' in env else dict(local_device_ids=[])


def _installed(package):
  import importlib.util
  return importlib.util.find_spec(package) is not None


def enter(args):
  """Joins the job that `args` or the environment name, if any; returns None, or an exit code to end with.

  In a job the caller goes on in a child; the parent comes back with the exit code when the child is done.
  """
  global _member
  where = place(args)
  if where is None:
    return None
  code = supervise.fork()
  if code is not None:
    return code
  _member, sys.excepthook = True, _end
  import jax
  # SIGTERM is ours: see `signals`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(**where, heartbeat_timeout_seconds=args.heartbeat,
                               initialization_timeout=args.start_timeout)
  except (RuntimeError, ValueError, OSError, KeyError) as error:
    text = ' '.join(str(error).split())[:200]
    if where is ASK and _client() is None:
      print(f'note: found no other hosts ({text}); running on this one', file=sys.stderr)
      return None
    raise errors.UserError(f'cannot join the job ({text}); give --coordinator, --processes and --process, or '
                           '--processes 1 for a process alone') from error
  os.write(2, supervise.JOINED)
  return None


def _end(kind, error, trace):
  """Ends this process after the traceback: others would wait for a process that leaves in order."""
  sys.__excepthook__(kind, error, trace)
  _exit(1)


def _exit(code):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def lost(error):
  """Whether `error` comes of another process's end: what a collective of a job raises."""
  if isinstance(error, errors.UserError):
    return False                         # says more
  while _member and size() > 1 and error is not None:
    if any(word in str(error) for word in LOST_WORDS):               # its type is any: ValueError, too
      return True
    error = error.__cause__ or error.__context__
  return False


def stop(error):
  """Ends this process, as `lost` is true of `error`; the parent has the last word."""
  os.write(2, f'{supervise.LOST_TEXT} {" ".join(str(error).split())}\n'.encode())
  _exit(supervise.LOST)


def leave(code, patience=TOGETHER):
  """Returns `code` after leaving the job; does not return if other processes are not leaving, too.

  Args:
    code:     with which this process ends.
    patience: seconds to wait for other processes; 0 = go at once.
  """
  if not _member or _client() is None:
    return code
  if not patience:
    _exit(code)
  try:
    _client().wait_at_barrier('stmoe/leave', 1000 * patience)
  except Exception:                      # somebody is still at work, or gone
    _exit(code)
  sys.modules['jax'].distributed.shutdown()
  return code


def _client():
  """The connection to the coordinator, or None outside a job."""
  if 'jax' not in sys.modules:
    return None
  from jax._src import distributed
  return distributed.global_state.client


def size():
  """Returns the number of processes."""
  if _client() is None:
    return 1
  from jax._src import distributed
  return distributed.global_state.num_processes


def index():
  """Returns the number of this process."""
  if _client() is None:
    return 0
  from jax._src import distributed
  return distributed.global_state.process_id


def leads():
  """Returns whether this process writes and speaks for the job."""
  return index() == 0


def exchange(value, patience=LONG):
  """Returns the list of the `value` of every process, for JSON; all must call it.

  Raises an exception of the runtime if a process does not within `patience` ms.
  """
  if size() == 1:
    return [value]
  folder = f'stmoe/exchange/{next(_turns)}'
  _client().key_value_set(f'{folder}/{index()}', json.dumps(value))
  _client().wait_at_barrier(f'{folder}/all', patience)
  values = dict(_client().key_value_dir_get(folder))
  return [json.loads(values[f'{folder}/{i}']) for i in range(size())]


def together(work):
  """Returns `work()`, done by every process; a mistake on one process is raised on all."""
  if size() == 1:
    return work()
  value = problem = None
  try:
    value = work()
  except errors.UserError as error:
    problem = str(error)
  problems = exchange(problem)
  wrong = [i for i, text in enumerate(problems) if text is not None]
  if wrong:
    where = '' if len(set(problems)) == 1 else f'process {wrong[0]}: '
    raise errors.UserError(where + problems[wrong[0]])
  return value


def first(work):
  """Returns `work()` of process 0, for JSON; no other process does it. All must call this."""
  return exchange(together(lambda: work() if leads() else None))[0]


def in_turn(work):
  """Returns `work()`, done by process 0 and then by other processes, which find what process 0 made."""
  first = together(lambda: work() if leads() else None)
  later = together(lambda: None if leads() else work())
  return first if leads() else later


def same(what, value):
  """Raises UserError unless `value`, for JSON, is the same on every process; `what` names it."""
  for process, other in enumerate(values := exchange(value)):
    if other != values[0]:
      raise errors.UserError(f'process {process} has another {what} ({other}) than process 0 ({values[0]})')
