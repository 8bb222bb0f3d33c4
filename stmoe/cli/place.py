"""Places experts on devices by a recording: balanced loads, next to where tokens go (MoETuner).

stmoe record runs/a --output routes.npz                       what the run's tokens chose
stmoe place routes.npz --devices 4                            the usual placement, and MoETuner's
stmoe place routes.npz --devices 8 --nodes 2 --far 4          a step between nodes costs 4, within one 1
stmoe place routes.npz --devices 4 --output placement.json    the device of every expert of every layer
stmoe compress runs/a moetuner:placement=placement.json --workdir runs/placed     the same model, placed so

stmoe place routes.npz --devices 4 --token 1 --send 0.5 --chunks 4        times in your unit, sent in chunks

The first program makes the largest load of a layer's devices the least. The second one gives the clusters of
the first to devices so that tokens cross little (arXiv:2502.06643, in our formulation). After an
ordinary dispatch tokens go home between layers: then only the balance matters. The time of a layer is of such
a dispatch, of all tokens at once: the fullest device computes, and the exchange overlaps in chunks (Comet).
"""

import json
import pathlib

from stmoe import ranges

# Fields of `overlap.Costs` that are options, and whose times they are.
TIMES = dict(token="a token's choice in its expert", send='sending it one way', latency='a message')


def add_arguments(parser):
  parser.add_argument('recording', metavar='FILE', help='of stmoe record')
  parser.add_argument('--devices', type=ranges.Count, required=True, metavar='G',
                      help='that share the experts')
  parser.add_argument('--nodes', type=ranges.Count, default=1, metavar='N', help='of equally many devices')
  parser.add_argument('--far', type=ranges.NonNegative, default=4.0, metavar='COST',
                      help='of a transition between nodes; default: 4')
  for field, said in TIMES.items():
    parser.add_argument(f'--{field}', type=ranges.NonNegative, metavar='TIME', help=f'of {said}')
  parser.add_argument('--chunks', type=ranges.Count, default=1, metavar='N',
                      help='in which tokens are sent while others compute; default: 1')
  parser.add_argument('--output', type=pathlib.Path, metavar='FILE',
                      help='JSON: devices of experts, by stack')


def run(args):
  import numpy as np
  from stmoe import files
  from stmoe.analysis import serving
  from stmoe.analysis import table
  from stmoe.analysis.serving import moetuner
  from stmoe.analysis.serving import overlap
  from stmoe.analysis.serving import traces
  if args.output:
    files.check_place('--output', args.output)
  given = {field: getattr(args, field) for field in TIMES}
  costs = overlap.Costs(**{field: value for field, value in given.items() if value is not None})
  distance = moetuner.distances(args.devices, args.nodes, args.far)
  placements = {}
  for stack, trace in traces.read(args.recording).items():
    load, moves = serving.loads(trace), moetuner.transitions(trace)
    tuned = moetuner.place(trace, distance)
    rows = []
    for name, of in (('usual', moetuner.contiguous(trace, args.devices)), ('moetuner', tuned)):
      found = moetuner.measured(of, load, moves, distance)
      time = np.mean([overlap.layer(of_layer, args.chunks, costs) for of_layer in found.loads])
      rows.append([name, f'{found.imbalance.mean():.2f}', f'{found.crossing:.1%}', f'{found.cost:,.0f}',
                   f'{time:,.1f}'])
    print(f'{stack}: {trace.described} on {args.devices} devices, {len(trace.chosen):,} tokens')
    headings = ['placement', 'largest over mean load', 'transitions that cross', 'cost of transitions',
                'time of a layer']
    print(table.plain(headings, rows))
    placements[stack] = [row[:experts].tolist() for row, experts in zip(tuned, trace.experts)]
  if args.output:
    files.write_text(args.output, json.dumps(placements) + '\n')
    print(args.output)
