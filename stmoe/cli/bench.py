"""Times the executors against the FLOP-matched dense floor, on this machine.

stmoe bench                                   the four shapes for CPUs, real routing: a few minutes
stmoe bench --shapes C1 --routing real,skewed,uniform --json OUT --plot OUT.png
stmoe bench --shapes S3,S5 --executors pallas,ragged --peers tokamax,megablox     on an accelerator
stmoe bench --shapes C1 --peers hf_grouped_mm                   Hugging Face's, over its own dense floor
stmoe bench --decode --batch-sizes 1,8          generation instead: a cached step against recomputation, and
                                                8 experts against 64
stmoe bench --step lm/stdlib_small              a training step instead: what of it is matrix products,
                                                and what the training loop costs beside it
stmoe bench --data --vocab train:4096           how fast texts are read, tokenized and written
stmoe bench --step lm/stdlib_small --by-scope   where its time goes, part by part, beside its dense twin
stmoe bench --step lm/stdlib_small --start      from the command to the first step, cold and warm
stmoe bench --step lm/stdlib_small --feed       tokens per second of the data alone, and of the step
stmoe bench --step lm/zoo:smoke --compile       the compiler's time, of every method over dense
"""

import json
import os
import pathlib
import sys

from stmoe import errors
from stmoe import files
from stmoe import ranges

COMPUTES = True
TRAINS = True
ROUNDS = dict(rounds=9)
# What is timed -> the fields that it reads, beside --json, with their defaults.
FIELDS: dict[str, dict] = {
    'executors': ROUNDS | dict(shapes='C1,C2,C3,C4', executors='gather,pallas', peers='', routing='real',
                               plot=None),
    'step': ROUNDS | dict(overrides=()),
    'by_scope': ROUNDS | dict(overrides=(), twin=None, plot=None),
    'start': dict(overrides=()),
    'feed': ROUNDS | dict(overrides=(), workers='1,2'),
    'compile': dict(overrides=()),
    'data': ROUNDS | dict(vocab='bytes', field='', documents=''),
    'decode': ROUNDS | dict(batch_sizes='1,8', experts='8,64', prompt=64),
}
OF_STEP = ('by_scope', 'start', 'feed', 'compile')


def add_arguments(parser):
  parser.add_argument('--shapes', help='out of C1 to C4 (for CPUs, the '
                      'default) and S1 to S7, S8a, S8b (for accelerators)')
  parser.add_argument('--executors', help='module names (default: gather,pallas)')
  parser.add_argument('--peers', help='other libraries, out of stmoe/bench/peers')
  parser.add_argument('--routing', help='out of real, skewed, uniform (default: real)')
  parser.add_argument('--rounds', type=ranges.Count, help='how often everything is timed (default: 9)')
  parser.add_argument('--step', metavar='NAME', help='an experiment whose training step to time instead')
  parser.add_argument('--data', nargs='*', metavar='FILE', help='time how texts become a cache '
                      'instead: these files, or the standard library in every format')
  parser.add_argument('--vocab', help='of --data (default: bytes)')
  parser.add_argument('--field', help='of --data: of a row that holds its text (default: text)')
  parser.add_argument('--documents', help='of --data: what a document of a file of text is')
  parser.add_argument('--by-scope', action='store_true', help='of --step: its time by parts of the model')
  parser.add_argument('--twin', metavar='NAME', help='of --by-scope: the experiment beside it (default: the '
                      'same with method=dense, where there is one)')
  parser.add_argument('--start', action='store_true', help='of --step: seconds from the command to a step')
  parser.add_argument('--feed', action='store_true', help='of --step: tokens per second of its data')
  parser.add_argument('--workers', help='processes of --feed (default: 1,2)')
  parser.add_argument('--compile', action='store_true', help="of --step: the compiler's time; of all methods "
                      'of an experiment whose name says none')
  parser.add_argument('--decode', action='store_true', help='time generation instead')
  parser.add_argument('--batch-sizes', help='of --decode (default: 1,8)')
  parser.add_argument('--experts', help='of --decode (default: 8,64)')
  parser.add_argument('--prompt', type=ranges.Count, help='tokens, of --decode (default: 64)')
  parser.add_argument('--json', metavar='OUT', type=pathlib.Path, help='also write the rows to this file')
  parser.add_argument('--plot', metavar='OUT', type=pathlib.Path, help='also draw the ratios, .png or .svg')
  parser.set_defaults(**_defaults())


def run(args):
  asked = _asked(args)
  for field, default in _defaults().items():
    if field not in FIELDS[asked] and getattr(args, field) != default:
      flag = '--config' if field == 'overrides' else f'--{field.replace("_", "-")}'
      of = ', '.join(_flags(timed) for timed, fields in FIELDS.items() if field in fields)
      raise errors.UserError(f'{flag} is of {of}; timed is {_flags(asked)}')
  return dict(executors=time_executors, step=time_step, by_scope=time_scopes, start=time_start,
              feed=time_feed, compile=time_compiling, data=time_data, decode=time_decoding)[asked](args)


def _defaults():
  """Dict field -> its default, of all FIELDS."""
  return {field: default for fields in FIELDS.values() for field, default in fields.items()}


def _asked(args):
  """What is to be timed, a key of FIELDS; raises UserError where flags ask for several things."""
  kinds = [name for name in ('step', 'data') if getattr(args, name) is not None] + ['decode'] * args.decode
  parts = [name for name in OF_STEP if getattr(args, name)]
  for names in (kinds, parts):
    if len(names) > 1:
      raise errors.UserError(f'{" and ".join(map(_flags, names))}: one of them is timed at a time')
  if parts and kinds != ['step']:
    raise errors.UserError(f'{_flags(parts[0])}: of which step? nearest: --step lm/stdlib_small '
                           f'{_flags(parts[0])}')
  return (parts or kinds or ['executors'])[0]


def _flags(timed):
  """The flag that asks for a key of FIELDS, in words."""
  return 'executors (no flag)' if timed == 'executors' else f'--{timed.replace("_", "-")}'


def time_data(args):
  """Prints a row for reading each format, for tokenizing and for writing; see `stmoe.bench.reading`."""
  from stmoe.bench import reading
  _writable(args)
  os.environ['STMOE_PROGRESS'] = 'off'
  how, rows = dict(field=args.field, documents=args.documents), []
  for row in reading.measure(args.data, args.vocab, how, args.rounds):
    if not rows:
      print(reading.HEADING)
    print(reading.line(row), flush=True)
    rows.append(row)
  _write(args, rows)


def time_decoding(args):
  """Prints a row per batch size and number of experts; see `stmoe.bench.decoding`."""
  numbers = {}
  for field in ('batch-sizes', 'experts'):
    words = getattr(args, field.replace('-', '_')).split(',')
    numbers[field] = [ranges.Count.typed(f'--{field}', word) for word in words]
  _writable(args)

  import jax
  from stmoe.bench import decoding as bench
  print(bench.HEADING)
  rows = []
  for row in bench.measure(numbers['experts'], numbers['batch-sizes'], args.prompt, args.rounds,
                           note=lambda text: None):
    print(bench.line(row), flush=True)
    rows.append(row)
    if args.json:
      device = jax.devices()[0].device_kind
      args.json.write_text(json.dumps(dict(device=device, jax=jax.__version__, rows=rows), indent=1) + '\n')


def time_step(args):
  """Prints what a training step spends its time on; see `stmoe.bench.step` and `overhead`."""
  _writable(args)
  from stmoe.bench import overhead
  from stmoe.bench import step as products
  from stmoe.runs import directory as rundir

  os.environ['STMOE_PROGRESS'] = 'off'
  cfg, name = rundir.named(args.step, args.overrides)
  row = dict(products.measure(cfg, args.rounds), loop=overhead.measure(cfg, args.rounds))
  print(f'{name}: step {row["step_ms"]:.0f} ms, {row["share"]:.0%} of it in matrix products; '
        f'{row["gflops"]:.0f} active GFLOP/s, square matmul {row["matmul_gflops"]:.0f} GFLOP/s')
  loop = row['loop']
  print(f'training loop over the bare step: {loop["ratio"]:.3f} (median of {len(loop["ratios"])} paired '
        f'ratios), {loop["loop_ms"]:.0f} and {loop["step_ms"]:.0f} ms')
  _write(args, row)


def time_scopes(args):
  """Prints where the time of a training step goes; see `stmoe.bench.by_scope`."""
  _writable(args)
  import jax
  from stmoe.analysis import canvas
  from stmoe.bench import by_scope
  from stmoe.bench import scope_figure
  from stmoe.runs import directory as rundir
  from stmoe.train import loop

  os.environ['STMOE_PROGRESS'] = 'off'
  cfg, name = rundir.named(args.step, args.overrides)
  beside = args.twin or (None if rundir.is_run(args.step) else by_scope.twin(args.step))
  dense = beside and rundir.named(beside, args.overrides)[0]
  loop.keep_compilations()
  measured = by_scope.measure(cfg, dense, args.rounds)
  print('\n'.join([f'{name}, dense: {beside}' if beside else name, *by_scope.table(measured)]))
  facts = dict(name=name, twin=beside, device=jax.devices()[0].device_kind, jax=jax.__version__)
  _write(args, facts | measured)
  if args.plot:
    args.plot.write_bytes(canvas.encode(scope_figure.draw(measured['parts'], name), args.plot.suffix[1:]))


def time_start(args):
  """Prints how long a user waits for the first step; see `stmoe.bench.waiting`."""
  _writable(args)
  from stmoe.bench import waiting
  rows = waiting.first_step(args.step, args.overrides)
  for how, row in rows.items():
    print(f'{how}: {row["s"]:.1f} s from the command to the end of the first step ({row["step_s"]:.1f} s), '
          f'{row["cpu_s"]:.1f} processor seconds')
  _write(args, dict(name=args.step, **rows))


def time_feed(args):
  """Prints how many tokens per second the data bring, and how many a step takes; see `stmoe.bench.feed`."""
  _writable(args)
  numbers = [ranges.Count.typed('--workers', word) for word in args.workers.split(',')]
  from stmoe.analysis import flops
  from stmoe.bench import feed
  from stmoe.bench import step as products
  from stmoe.runs import directory as rundir

  os.environ['STMOE_PROGRESS'] = 'off'
  cfg, name = rundir.named(args.step, args.overrides)
  rates = {number: feed.measure(args.step, tuple(args.overrides), number) for number in numbers}
  tokens = flops.lengths(cfg)['decoder'] * cfg.train.batch_size
  taken = 1e3 * tokens / products.measure(cfg, args.rounds)['step_ms']
  for number, rate in rates.items():
    print(f'{name}, {number} worker(s): {rate:,.0f} tokens/s, {rate / taken:.1f} times what the step takes')
  print(f'{name}, the step: {taken:,.0f} tokens/s')
  _write(args, dict(name=name, step=taken, workers=rates))


def time_compiling(args):
  """Prints the processor seconds of tracing and compiling steps; see `stmoe.bench.waiting`."""
  _writable(args)
  import jax
  from stmoe.bench import by_scope
  from stmoe.bench import waiting
  from stmoe.runs import directory as rundir

  os.environ['STMOE_PROGRESS'] = 'off'
  jax.config.update('jax_enable_compilation_cache', False)
  rows = {}
  for name in by_scope.methods(args.step):
    rows[name] = row = waiting.compiling(rundir.named(name, args.overrides)[0])
    over = sum(row.values()) / sum(next(iter(rows.values())).values())
    print(f'{name}: tracing {row["trace_cpu_s"]:.1f} s, compiling {row["compile_cpu_s"]:.1f} s, together '
          f'{over:.2f} of the first', flush=True)
  _write(args, rows)


def _write(args, rows):
  """Writes `rows` as JSON where `args` says so."""
  if args.json:
    args.json.write_text(json.dumps(rows, indent=1) + '\n')


def _writable(args):
  """Raises UserError unless the files of `args` have folders, and the picture an end that says its form."""
  for field in ('json', 'plot'):
    if out := getattr(args, field):
      files.check_place(f'--{field}', out)
  if args.plot and args.plot.suffix not in ('.png', '.svg'):
    raise errors.UserError(f'plot: {args.plot.name} ends in neither .png nor .svg; nearest: '
                           f'{args.plot.stem}.png')


def time_executors(args):
  """Prints a row per shape, executor and routing; see `stmoe.bench.layers`."""
  from stmoe import lookup
  from stmoe.bench import layers as bench
  from stmoe.bench import shapes as known

  shapes = bench.names(args.shapes, list(known.SHAPES), 'shapes')
  executors = bench.names(args.executors, lookup.available('executor'), 'executors')
  peers = bench.names(args.peers, lookup.available('peer'), 'peers') if args.peers else []
  routings = bench.names(args.routing, list(bench.ROUTINGS), 'routing')
  _writable(args)

  import jax
  device = jax.devices()[0].device_kind
  note = (lambda text: print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)
          ) if sys.stderr.isatty() else (lambda text: None)
  for peer in peers:
    if bench.missing(peer):
      print(f'not timed: {peer}: {bench.missing(peer)}')
  peers = [peer for peer in peers if not bench.missing(peer)]
  rows = []
  print('Time over the dense floor: median of paired ratios (ratio of minima).')
  print(bench.HEADING)
  for shape in shapes:
    for row in bench.measure(known.SHAPES[shape], executors, routings, args.rounds, peers, note):
      note('')
      print(bench.line(row), flush=True)
      rows.append(row)
    print(f'      dense floor {row["train"]["dense_gflops"]:.0f} GFLOP/s forward and backward, '
          f'square matmul {row["matmul_gflops"]:.0f} GFLOP/s', flush=True)
    if args.json:                          # after every shape, so that an interruption loses little
      args.json.write_text(json.dumps(dict(device=device, jax=jax.__version__, rows=rows), indent=1) + '\n')
    if args.plot:
      from stmoe.analysis import canvas
      from stmoe.bench import figure as bench_figure
      args.plot.write_bytes(canvas.encode(bench_figure.draw(rows, device), args.plot.suffix[1:]))
