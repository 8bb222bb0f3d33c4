"""Which processes form a job, and which rows of a batch a process of it has. Nothing here starts one."""

import jax
import pytest

from stmoe import axes
from stmoe import errors
from stmoe.cli import main
from stmoe.hosts import distributed
from stmoe.hosts import job

STEP = dict(SLURM_JOB_ID='7', SLURM_STEP_NODELIST='n[1-2]', SLURM_NTASKS='4', SLURM_PROCID='1',
            SLURM_LOCALID='1')


def place(*flags, **environment):
  parser = main.Parser(allow_abbrev=False)
  job.add_arguments(parser)
  return job.place(parser.parse_args(flags), environment)


def test_flags_say_where():
  where = place('--coordinator', 'node0:7777', '--processes', '4', '--process', '3')
  assert where == dict(coordinator_address='node0:7777', num_processes=4, process_id=3, local_device_ids=[])
  # Flags come before what is found, and one process is no job.
  assert place('--processes', '1', SLURM_STEP_NUM_TASKS='4', **STEP) is None


@pytest.mark.parametrize('flags,said', [
    (('--coordinator', 'node0:7777'), '--processes and --process missing'),
    (('--processes', '2', '--process', '0'), '--coordinator missing'),
    (('--coordinator', 'node0', '--processes', '2', '--process', '0'), 'write HOST:PORT'),
    (('--coordinator', 'node0:99999', '--processes', '2', '--process', '0'), 'write HOST:PORT'),
    (('--coordinator', 'node0:7777', '--processes', '2', '--process', '2'), 'count from 0 to 1'),
    (('--heartbeat', '0'), 'at least 1'), (('--processes', 'two'), 'a whole number')])
def test_wrong_flags_are_mistakes(flags, said):
  with pytest.raises(errors.UserError, match=said):
    place(*flags)


def test_what_the_environment_says():
  assert place() is None
  # Two tasks on each of two nodes: a device each, found by JAX. One task a node: all devices of the node.
  assert place(SLURM_STEP_NUM_TASKS='4', SLURM_STEP_TASKS_PER_NODE='2(x2)', **STEP) == dict(num_processes=4)
  all_devices = dict(num_processes=2, local_device_ids=[])
  assert place(SLURM_STEP_NUM_TASKS='2', SLURM_STEP_TASKS_PER_NODE='1(x2)', **STEP) == all_devices
  # A batch script or a shell in an allocation of four tasks: one process.
  assert place(**STEP) is None
  assert place(SLURM_STEP_NUM_TASKS='1', **STEP) is None
  assert place(OMPI_COMM_WORLD_SIZE='2', OMPI_MCA_orte_hnp_uri='x') == {}
  assert place(OMPI_COMM_WORLD_SIZE='1', OMPI_MCA_orte_hnp_uri='x') is None
  assert place(TPU_WORKER_HOSTNAMES='a,b', TPU_WORKER_ID='0') == {}
  assert place(TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0') is None


def test_a_command_that_is_one_process_says_so():
  job.alone('bench', {})
  job.alone('bench', dict(SLURM_STEP_NUM_TASKS='1'))
  with pytest.raises(errors.UserError, match='stmoe bench runs as one process'):
    job.alone('bench', dict(SLURM_STEP_NUM_TASKS='2'))


class OnProcesses:
  """A sharding whose devices are dealt out to processes, as `shard` sees it."""

  def __init__(self, monkeypatch, mesh, owners, here):
    spans = distributed.spans_of
    device = lambda d: type('Device', (), dict(process_index=owners[d.id], id=d.id))()
    monkeypatch.setattr(distributed, 'spans_of', lambda *a: {device(d): s for d, s in spans(*a).items()})
    monkeypatch.setattr(jax, 'process_index', lambda: here)
    monkeypatch.setattr(jax, 'process_count', lambda: len(set(owners)))


@pytest.mark.parametrize('sizes,owners,parts', [
    ((8, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
    ((2, 2, 2), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # `model` runs over processes: two of them have the same rows, or all.
    ((2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 1, 8), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 1), (0, 1)])], ids=str)
def test_rows_of_a_process(monkeypatch, sizes, owners, parts):
  with axes.use(axes.make_mesh(*sizes)) as mesh:
    for here, part in enumerate(parts):
      with monkeypatch.context() as patch:
        OnProcesses(patch, mesh, owners, here)
        assert distributed.shard(mesh, 16) == part


def test_rows_that_are_not_one_run_are_a_mistake(monkeypatch):
  with axes.use(axes.make_mesh(8, 1, 1)) as mesh:
    OnProcesses(monkeypatch, mesh, [0, 1] * 4, 0)
    with pytest.raises(errors.UserError, match="'data': 8.*rows 0-1, 4-5, 8-9, 12-13 of 16.*mesh.data=2"):
      distributed.shard(mesh, 16)


def test_alone_everything_is_about_this_process():
  assert (job.size(), job.index(), job.leads(), job.exchange('x')) == (1, 0, True, ['x'])
  assert job.first(lambda: 3) == job.in_turn(lambda: 3) == job.together(lambda: 3) == 3
  assert job.leave(7) == 7 and not job.lost(RuntimeError('Gloo'))
