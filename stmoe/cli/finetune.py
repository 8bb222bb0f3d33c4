"""Trains an experiment from the parameters of another run; the same command continues a run that was stopped.

stmoe finetune runs/try superglue/mixture:local --config.data.jsonl=DIR --workdir runs/superglue
stmoe finetune runs/try finetune/jsonl --config.data.jsonl=TRAIN.jsonl,VALIDATION.jsonl
stmoe finetune runs/imported finetune/task:task=boolq --config.train.trainable=non_expert
stmoe finetune runs/try finetune/jsonl --config.finetune.adapter=lora:rank=16,targets=attention+layer
stmoe finetune runs/dense finetune/jsonl --config.finetune.adapter=mixlora:num_experts=8,k=2      or dynmole
stmoe finetune runs/vmoe vmoe/finetune --config.data.image_size=512     images of another size, other labels
stmoe finetune runs/b finetune/task --replay FILE         with recorded routing, see stmoe record

START is a run directory, trained here or made by stmoe convert. The new run has START's model and vocabulary,
changed by the recipe in section finetune of the experiment. Scores stand in results.json of the new run.

With an adapter START's own parameters stay as they are. `stmoe convert RUN NEW --adapter` then saves the
adapter alone, and `stmoe compress RUN merge_adapter` merges it.
"""

from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True
TRAINS = True


def add_arguments(parser):
  parser.add_argument('start', metavar='START',
                      help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('name', metavar='NAME',
                      help='the fine-tuning experiment, NAME[:argument], or a .py file')
  parser.add_argument('--step', type=ranges.Natural, help='checkpoint of START; default: the newest')
  parser.add_argument('--workdir', metavar='DIR', help='the new run directory; default: runs/ and the name')
  parser.add_argument('--replay', metavar='FILE', help='a recording of routing: its rows, its experts')
  parser.set_defaults(overrides=())


def run(args):
  from stmoe.derive import finetune
  from stmoe.derive import foreseen
  foreseen.replayed(args.start, args.replay)
  foreseen.texts([args.start], finetune.own(args.name, args.overrides)[0])
  start = downloaded.run_directory(args.start)
  cfg, name = finetune.prepare(args.name, args.overrides, start, args.step)
  if args.replay:
    from stmoe.data import recording
    recording.replay(cfg, args.replay)
  workdir = args.workdir or rundir.default(name, cfg, [start])
  return finetune.finetune(start, cfg, workdir, name, args.step)
