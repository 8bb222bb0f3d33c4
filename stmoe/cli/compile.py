"""Says whether an experiment fits on accelerators and what moves between them; no accelerator is needed.

stmoe compile lm/stdlib --topology v5e:2x4
stmoe compile st_moe/32b --topology v5p:8x8x8 --json report.json        takes many minutes
stmoe compile lm/text:method=switch,smoke --topology cpu:8 --config.mesh.expert=4

Topologies: v4, v5p (2x2x1, 8x8x8, ...), v5e, v6e (2x4, 16x16, ...), h100, h200 (8, 16, ...), cpu (any
number of virtual devices). TPUs and GPUs need the extra: pip install 'stmoe[aot]'. The training step is
compiled for a topology as it would run there; times are estimates from vendors' figures.
"""

import json
import pathlib
import sys
import time

from stmoe import files
from stmoe.derive import downloaded


def add_arguments(parser):
  parser.add_argument('name', metavar='NAME', help='an experiment, NAME[:argument], a run directory, or a '
                      'downloaded folder, of which no tensor is read')
  parser.add_argument('--topology', required=True, metavar='CHIP:SHAPE', help='for example v5p:8x8x8')
  parser.add_argument('--quick', action='store_true',
                      help="the compiler's least effort: sooner an answer, but memory is not the final one")
  parser.add_argument('--json', metavar='OUT', type=pathlib.Path, help='also write the report to this file')
  parser.set_defaults(overrides=())


def run(args):
  from stmoe.aot import topology
  cfg, name = downloaded.named(args.name, args.overrides)
  if args.json:
    files.check_place('--json', args.json)
  topology.prepare(args.topology)
  from stmoe.aot import step as aot
  from stmoe.aot import text as pages
  chip, devices, remark = topology.devices(args.topology)
  started = time.monotonic()
  note = lambda text: print(f'[{time.monotonic() - started:4.0f} s] {text}', file=sys.stderr, flush=True)
  facts = dict(name=name, topology=args.topology, devices=len(devices), remark=remark, quick=args.quick,
               versions=topology.versions(args.topology), chip=chip._asdict(),
               **aot.examine(cfg, chip, devices, note, args.quick))
  print('\n'.join(pages.lines(facts)))
  if args.json:
    args.json.write_text(json.dumps(facts, indent=1) + '\n')
  return 0
