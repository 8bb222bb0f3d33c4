"""Simulates serving with a few experts on the device: caches, HybriMoE's schedule and prefetching.

stmoe record runs/a --output routes.npz                       what the run's tokens chose
stmoe offload routes.npz --slots 4                            all policies, 4 experts of each layer on the GPU
stmoe offload routes.npz --slots 4 --prefetch 2               HybriMoE also loads 2 experts of the next layer:
                                                              of best score, most used, or known to an oracle
stmoe offload routes.npz --gpu 0.1 --cpu-token 0.8 --move 1.7      other times of an expert, in your unit

Texts are read token by token, as decoding does, one after the other. `belady` knows the future: no policy has
more hits. `most_used` never changes what it holds. With these, absent experts are moved and nothing else
computes. `hybrimoe` may also compute on the CPU (arXiv:2504.05897). Its scores are of choices alone, since
a recording holds no probabilities. What it prefetches costs no time. `ring` passes whole layers through as
much room (SE-MoE, arXiv:2205.10034): every expert is there in time, or the device waits. No model runs: times
are sums of what is given here.
"""

import json

from stmoe import errors
from stmoe import ranges

# Fields of `hybrimoe.Times` that are options, and whose times they are.
TIMES = dict(gpu='an expert on the GPU', gpu_token='a token on the GPU', cpu='an expert on the CPU',
             cpu_token='a token on the CPU', cpu_once='the CPU, once a layer', move='moving an expert')


def add_arguments(parser):
  parser.add_argument('recording', metavar='FILE', help='of stmoe record')
  parser.add_argument('--slots', type=ranges.Count, metavar='N',
                      help='experts of a layer; default: half of them')
  parser.add_argument('--prefetch', type=ranges.Natural, default=0, metavar='N',
                      help='experts of the next layer; default: 0')
  for field, said in TIMES.items():
    parser.add_argument(f'--{field.replace("_", "-")}', type=ranges.NonNegative, metavar='TIME',
                        help=f'of {said}')
  parser.add_argument('--json', action='store_true', help='print everything as JSON')


def run(args):
  from stmoe.analysis.serving import hybrimoe
  from stmoe.analysis.serving import offloading
  from stmoe.analysis.serving import traces
  given = {field: getattr(args, field) for field in TIMES}
  times = hybrimoe.Times(**{field: value for field, value in given.items() if value is not None})
  found = {}
  for stack, trace in traces.read(args.recording).items():
    slots = args.slots or max(trace.num_experts // 2, 1)
    if slots > trace.num_experts:
      raise errors.UserError(f'--slots {slots}: layers of {stack} have {trace.num_experts} experts; nearest: '
                             f'{trace.num_experts}')
    found[stack] = offloading.compared(trace, slots, times, args.prefetch)
  if args.json:
    print(json.dumps(found, indent=1))
  else:
    print('\n\n'.join(offloading.table(stack, rows) for stack, rows in found.items()))
    print('\ntimes in one unit: ' + ', '.join(f'--{field.replace("_", "-")} {getattr(times, field):.4g}'
                                              for field in TIMES))
