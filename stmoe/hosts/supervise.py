"""A parent that watches a process of a job and says in one line how the process ended.

When a process of a job dies, JAX's runtime aborts the other processes from a thread of its own. The abort
comes with a stack trace and out of Python's reach. So a process of a job does its work in a child. The parent
passes signals on, keeps back what the runtime says about the death of others, and turns it into one line and
exit code 75.
"""

import ctypes
import os
import re
import signal
import sys
import threading

LOST = 75                                # the exit code of a process that stops because another is gone
JOINED = b'joined\n'                     # what the child writes when it is in the job
LOST_TEXT = 'lost:'                      # how the child says that, where the runtime left it the time
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NOISE = re.compile(rb'\[Gloo\] Rank \d+ is connected')
# From the first such line on, all that the runtime writes is about the end of the job.
DEATH = re.compile(rb'[EWF]\d{4} .*(coordination_service|preemption_sync|client\.h)|' + LOST_TEXT.encode())
FATAL = re.compile(rb'Terminating process because the JAX distributed service|' + LOST_TEXT.encode())


def fork():
  """Returns None in a new child process, and in this process the child's exit code when it has ended."""
  read, write = os.pipe()
  child = os.fork()
  if child:
    os.close(write)
    return _watch(child, read)
  os.close(read)
  os.setpgid(0, 0)                       # Ctrl-C reaches the parent, which passes it on, once
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)       # PR_SET_PDEATHSIG: no child without its parent
  # Python speaks to the terminal as before; what libraries in C++ write goes through the parent.
  sys.stdout = sys.__stdout__ = _own(sys.stdout, 1, write)           # type: ignore[misc]  # not final here
  sys.stderr = sys.__stderr__ = _own(sys.stderr, 2, write)           # type: ignore[misc]
  os.close(write)
  return None


def _own(stream, number, write):
  """A text stream like `stream` on a copy of file descriptor `number`, which becomes a copy of `write`."""
  buffering = 1 if number == 2 or os.isatty(number) else -1
  copy = os.fdopen(os.dup(number), 'w', buffering=buffering, encoding=stream.encoding, errors=stream.errors)
  os.dup2(write, number)
  return copy


def _watch(child, read):
  """The exit code of process `child`, whose file descriptor 2 arrives at `read`."""
  for number in PASSED_ON:
    signal.signal(number, lambda number, frame: _pass_on(child, number))
  chunks, joined = [], threading.Event()
  listener = threading.Thread(target=_listen, args=(read, chunks, joined), daemon=True)
  listener.start()
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  listener.join(2)                       # a grandchild may hold the pipe open
  text = b''.join(chunks)
  if code == LOST or code == -signal.SIGABRT and FATAL.search(text):
    if not joined.is_set():
      _say(b'stmoe: the job did not come together in time (--start-timeout); are all its processes started, '
           b'and can they reach the coordinator, process 0?\n')
      return LOST
    _say(f'stmoe: {_who(text)} of this job is gone{_why(text)}, so this one stops; the same command on all '
         'hosts, or on fewer, continues from the last checkpoint\n'.encode())
    return LOST
  _say(text)
  if code < 0:
    _say(f'stmoe: ended by {signal.Signals(-code).name}\n'.encode())
    return 128 - code
  return code


def _pass_on(child, number):
  try:
    os.kill(child, number)
  except ProcessLookupError:
    pass


def _listen(read, kept, joined):
  """Writes the lines from `read` to stderr; lines about the end of the job go into the list `kept`."""
  with os.fdopen(read, 'rb') as lines:
    for line in lines:
      if line == JOINED:
        joined.set()
      elif kept or DEATH.match(line):
        kept.append(line)
      elif not NOISE.match(line):
        _say(line)


def _say(text):
  if text:
    os.write(2, text)


def _why(text):
  """The first words of the error by which Python noticed the loss, or ''."""
  match = re.search(rb'^' + LOST_TEXT.encode() + rb' (.{1,120})', text, re.MULTILINE)
  return f' ({match[1].decode(errors="replace").strip()})' if match else ''


def _who(text):
  """The process that the runtime's message is about, in words."""
  if b'leader task' in text:
    return 'process 0'
  match = re.search(rb'unhealthy \(stopped sending heartbeats\):\n((?:\d+\n)+)', text)
  if not match:
    return 'another process'
  numbers = match[1].decode().split()
  return f'process {numbers[0]}' if len(numbers) == 1 else f'one of the processes {", ".join(numbers)}'
